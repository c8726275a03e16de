#include "models/contraction.h"

#include "core/error.h"
#include "kernels/list.h"
#include "models/layered.h"

namespace fastsae {
namespace {

Tensor rows_of(const Tensor* scratch, const Batch& batch) { return scratch->slice_rows(0, batch.rows()); }

Kernel slopes(DType dtype, const std::string& activation, const Tensor& a, const Tensor& curvature) {
  Kernel kernel{};
  with_scalar(dtype, [&](auto s) {
    using S = decltype(s);
    with_named<Activations>("activation", activation, [&](auto f) {
      kernel = as_kernel(Slopes<S, decltype(f)>{a.view<const S>(), curvature.view<S>()});
    });
  });
  return kernel;
}

// Noise of a stream on all elements of `values`; with weights its variance is theirs.
void add_normals(Backend& backend, const Tensor& values, const Contraction::Pass& pass, Stream stream,
                 double variance, bool weighted) {
  const std::int64_t run = (values.cols + 3) / 4;
  const Tensor first_run{values.data, values.rows, run, values.stride, values.dtype};
  with_scalar(values.dtype, [&](auto s) {
    using S = decltype(s);
    const Noise<S> noise{values.view<const S>(),          values.view<S>(), values.cols, run, stream,
                         pass.batch.numbers.as<double>(), pass.step.scalars};
    if (weighted)
      backend.map(first_run, as_kernel(AddNormals<S, true>{noise, variance, pass.batch.weight.as<S>()}), {});
    else
      backend.map(first_run, as_kernel(AddNormals<S, false>{noise, variance, nullptr}), {});
  });
}

// An encoder of one layer.
class Exact final : public Contraction {
 public:
  Exact(const ModelSpec& spec, Backend& backend)
      : layer_(spec.layers.front()), dtype_(spec.dtype), penalty_(spec.contraction), backend_(backend) {}

  bool draws_noise() const override { return penalty_.hessian_weight > 0; }

  void declare_scratch(Arena& scratch, std::int64_t rows) override {
    const std::int64_t units = layer_.out.size();
    const auto matrix = [&](const char* name, std::int64_t cols) {
      return &scratch.declare(name, rows, cols, dtype_);
    };
    squares_ = &scratch.declare("contraction.squares", units, 1, DType::f64);
    sums_ = &scratch.declare("contraction.sums", 3, units, DType::f64);
    slope_ = matrix("contraction.slope", units);
    curvature_ = matrix("contraction.curvature", units);
    if (!draws_noise()) return;
    neighbour_ = matrix("contraction.neighbour", layer_.in.size());
    neighbour_slope_ = matrix("contraction.neighbour_slope", units);
    neighbour_curvature_ = matrix("contraction.neighbour_curvature", units);
  }

  void forward(const Pass& pass, bool value_only) override {
    const Stage& stage = pass.stages.front();
    if (pass.first) {
      with_scalar(dtype_, [&](auto s) {
        backend_.map(*stage.layer->weight, as_kernel(SquaredRows<decltype(s)>{}), {*squares_});
      });
    }
    differentiate(rows_of(stage.activation, pass.batch), rows_of(slope_, pass.batch),
                  rows_of(curvature_, pass.batch));
    if (draws_noise()) {
      const Tensor x = rows_of(neighbour_, pass.batch), a = rows_of(neighbour_slope_, pass.batch);
      backend_.copy(x, pass.x);
      add_normals(backend_, x, pass, Stream::neighbour, penalty_.noise * penalty_.noise, false);
      const Kernel kernel = stage.kernels.infer(*stage.layer->bias);
      stage.layer->forward({backend_, {}}, x, a, {&kernel});
      differentiate(a, a, rows_of(neighbour_curvature_, pass.batch));
    }
    if (!value_only) return;
    backend_.fill(rows_of(stage.delta, pass.batch), 0);
    add_delta(pass, 0);
  }

  void add_delta(const Pass& pass, Index) override {
    const Tensor* near_slope = draws_noise() ? neighbour_slope_ : slope_;
    const Tensor* near_curvature = draws_noise() ? neighbour_curvature_ : curvature_;
    with_scalar(dtype_, [&](auto s) {
      using S = decltype(s);
      const Contract<S> contract{slope_->view<const S>(),     curvature_->view<const S>(),
                                 near_slope->view<const S>(), near_curvature->view<S>(),
                                 pass.batch.weight.as<S>(),   squares_->as<double>(),
                                 pass.step.scalars,           penalty_.weight,
                                 penalty_.hessian_weight};
      backend_.map(rows_of(pass.stages.front().delta, pass.batch), as_kernel(contract),
                   {*sums_, !pass.first});
    });
  }

  bool add_weight_gradient(const Pass& pass, Index, bool accumulate) override {
    if (!draws_noise()) return false;
    pass.stages.front().layer->weight_gradient({backend_, {}}, rows_of(neighbour_, pass.batch),
                                               rows_of(neighbour_curvature_, pass.batch), accumulate, {});
    return true;
  }

  std::optional<Kernel> finish_weights(const Pass& pass, double decay) const override {
    const Tensor& weight = *pass.stages.front().layer->weight;
    return with_scalar(dtype_, [&](auto s) {
      using S = decltype(s);
      return as_kernel(ContractedGradient<S>{weight.view<const S>(), sums_->slice_rows(1, 1).as<double>(),
                                             pass.step.scalars, decay, layer_.weight_l1});
    });
  }

  Tensor delta_sums(Index) const override { return sums_->slice_rows(0, 1); }

  void add_cost(StepTotals* totals, std::vector<Total>& sums) const override {
    sums.push_back({sums_->slice_rows(2, 1), 1, &totals->element_penalty});
  }

 private:
  void differentiate(const Tensor& a, const Tensor& slope, const Tensor& curvature) {
    backend_.map(slope, slopes(dtype_, layer_.activation, a, curvature), {});
  }

  const LayerSpec layer_;
  const DType dtype_;
  const ContractionSpec penalty_;
  Backend& backend_;
  Tensor* squares_ = nullptr;  // [units x 1]
  Tensor* sums_ = nullptr;     // [3 x units] of deltas, of the penalty before and after |W_j|^2
  Tensor *slope_ = nullptr, *curvature_ = nullptr;  // [rows x units]
  Tensor* neighbour_ = nullptr;                     // [rows x inputs]
  // [rows x units]; the curvature becomes the neighbour's delta.
  Tensor *neighbour_slope_ = nullptr, *neighbour_curvature_ = nullptr;
};

// An encoder of several layers.
class Estimated final : public Contraction {
 public:
  Estimated(const ModelSpec& spec, Backend& backend)
      : layers_(spec.layers.begin(), spec.layers.begin() + spec.code_layer),
        dtype_(spec.dtype),
        weight_(spec.contraction.weight),
        backend_(backend) {}

  bool draws_noise() const override { return true; }

  void declare_scratch(Arena& scratch, std::int64_t rows) override {
    direction_ = &scratch.declare("contraction.direction", rows, layers_.front().in.size(), dtype_);
    kept_.clear();
    for (const LayerSpec& layer : layers_) {
      const std::int64_t units = layer.out.size();
      const auto matrix = [&](const char* name) {
        return &scratch.declare(text("contraction.", name, layer.number), rows, units, dtype_);
      };
      kept_.push_back({matrix("slope"), matrix("bend"), matrix("tangent"),
                       &scratch.declare(text("contraction.sums", layer.number), 1, units, DType::f64)});
    }
    squares_ = &scratch.declare("contraction.squares", 1, layers_.back().out.size(), DType::f64);
  }

  void forward(const Pass& pass, bool) override {
    Tensor below = rows_of(direction_, pass.batch);
    backend_.fill(below, 0);
    // Tangents are linear in u: with its variance lambda w/W their squares are those of the cost.
    add_normals(backend_, below, pass, Stream::direction, weight_, true);
    for (Index i = 0; i < count(); ++i) {
      const Stage& stage = pass.stages[static_cast<std::size_t>(i)];
      const Tensor slope = rows_of(kept(i).slope, pass.batch), bend = rows_of(kept(i).bend, pass.batch);
      const Tensor tangent = rows_of(kept(i).tangent, pass.batch);
      const Tensor activation = rows_of(stage.activation, pass.batch);
      backend_.map(slope, slopes(dtype_, layers_[static_cast<std::size_t>(i)].activation, activation, bend),
                   {});
      stage.layer->forward({backend_, {}}, below, tangent, {});
      with_scalar(dtype_, [&](auto s) {
        using S = decltype(s);
        const bool code = i + 1 == count();
        backend_.map(tangent, as_kernel(Tangent<S>{slope.view<const S>(), bend.view<S>()}),
                     code ? Sums{*squares_, !pass.first} : Sums{});
      });
      below = tangent;
    }
  }

  void add_delta(const Pass& pass, Index i) override {
    const Tensor error = rows_of(kept(i).tangent, pass.batch);
    const bool code = i + 1 == count();
    if (!code) {
      const Stage& above = pass.stages[static_cast<std::size_t>(i + 1)];
      above.layer->backward({backend_, {}}, rows_of(kept(i + 1).tangent, pass.batch), error, {});
    }
    with_scalar(dtype_, [&](auto s) {
      using S = decltype(s);
      const TangentDelta<S> kernel{error.view<S>(), kept(i).slope->view<const S>(),
                                   kept(i).bend->view<const S>(), code ? S(2) : S(1)};
      backend_.map(rows_of(pass.stages[static_cast<std::size_t>(i)].delta, pass.batch), as_kernel(kernel),
                   {*kept(i).sums, !pass.first});
    });
  }

  bool add_weight_gradient(const Pass& pass, Index i, bool accumulate) override {
    const Tensor below = rows_of(i == 0 ? direction_ : kept(i - 1).tangent, pass.batch);
    pass.stages[static_cast<std::size_t>(i)].layer->weight_gradient(
        {backend_, {}}, below, rows_of(kept(i).tangent, pass.batch), accumulate, {});
    return true;
  }

  std::optional<Kernel> finish_weights(const Pass&, double) const override { return std::nullopt; }
  Tensor delta_sums(Index i) const override { return *kept(i).sums; }

  void add_cost(StepTotals* totals, std::vector<Total>& sums) const override {
    sums.push_back({*squares_, 1, &totals->kl});  // the part that is not divided by the total weight again
  }

 private:
  struct Kept {
    // [rows x units]; the tangent becomes the error of v once its layer's delta is made.
    Tensor *slope, *bend, *tangent;
    Tensor* sums;  // [1 x units] of deltas
  };
  Index count() const { return static_cast<Index>(layers_.size()); }
  const Kept& kept(Index i) const { return kept_[static_cast<std::size_t>(i)]; }

  const std::vector<LayerSpec> layers_;
  const DType dtype_;
  const double weight_;
  Backend& backend_;
  Tensor* direction_ = nullptr;  // [rows x inputs] u
  std::vector<Kept> kept_;
  Tensor* squares_ = nullptr;  // [1 x units] of the code's tangent
};

}  // namespace

std::unique_ptr<Contraction> make_contraction(const ModelSpec& spec, Backend& backend) {
  const ContractionSpec& penalty = spec.contraction;
  if (!(penalty.weight > 0) && !(penalty.hessian_weight > 0)) return nullptr;
  const auto count = static_cast<std::int64_t>(spec.layers.size());
  FS_REQUIRE(spec.code_layer >= 1 && spec.code_layer < count,
             "contraction: needs layers before the code and after it");
  for (std::int64_t i = 0; i < spec.code_layer; ++i) {
    const LayerSpec& layer = spec.layers[static_cast<std::size_t>(i)];
    FS_REQUIRE(layer.kind == "dense" && layer.winners.empty(),
               "contraction: needs a dense encoder, but layers[", i, "] is of kind '", layer.kind, "'",
               layer.winners.empty() ? "" : " with winners");
  }
  if (spec.code_layer == 1) return std::make_unique<Exact>(spec, backend);
  FS_REQUIRE(!(penalty.hessian_weight > 0), "contraction_hessian: needs an encoder of one layer, got ",
             spec.code_layer);
  return std::make_unique<Estimated>(spec, backend);
}

}  // namespace fastsae
