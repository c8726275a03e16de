// A list of layers with a reconstruction loss, sparsity penalties on hidden layers and weight decay.
//
// One step, L layers, delta_l = dJ/dz_l:
//   a_l     = f_l(a_{l-1} W_l' + b_l)            sums of a_l in the epilogue
//   column  = beta/W dKL/d(mean a_l)             from those sums, h numbers
//   delta_L = w/W dloss/dz_L                     in the epilogue of the last product; the output is never stored
//   delta_l = (delta_{l+1} W_{l+1} + w column + w beta/W penalty') f'(a_l)     in the epilogue
//   dW_l    = delta_l' a_{l-1} + lambda W_l,   db_l = sum of delta_l
#include "models/layers.h"

namespace fastsae {
namespace {

struct Layer {
  LayerSpec spec;
  Linear linear;
  LayerKernels kernels;
  Tensor* rho_hat = nullptr;  // [1 x units] doubles; only where it moves
  // Scratch.
  Tensor* activation = nullptr;  // [rows x units]; the last layer's holds its delta
  Tensor* delta = nullptr;       // [rows x units]
  Tensor* sums = nullptr;  // [2 x units] hidden: of a and of the penalty; last: of delta and of the loss
  Tensor* delta_sums = nullptr;    // [1 x units]
  Tensor* column = nullptr;        // [1 x units] KL slopes, 0 without KL
  Tensor* kl = nullptr;            // [1 x units] KL values
  Tensor* next_rho_hat = nullptr;  // [1 x units]
  Tensor* weight_sums = nullptr;   // [2 x inputs] squared gradient, squared weight
  Tensor* bias_sums = nullptr;     // [1 x units] squared gradient

  bool has_penalty() const { return spec.penalty != "none" && spec.beta > 0; }
  bool has_kl() const { return has_penalty() && spec.penalty == "kl"; }
};

class Layered final : public Model {
 public:
  Layered(const ModelSpec& spec, Backend& backend) : spec_(spec), backend_(backend) {
    FS_REQUIRE(!spec.layers.empty() && spec.layers.back().units == spec.n_features,
               "layers: the last layer must have n_features units");
    FS_REQUIRE(spec.code_layer >= 0 && spec.code_layer <= static_cast<std::int64_t>(spec.layers.size()),
               "n_encoder_layers: out of range");
    std::int64_t inputs = spec.n_features;
    for (const LayerSpec& layer : spec.layers) {
      FS_REQUIRE(layer.units >= 1, "layers: expected units >= 1, got ", layer.units);
      layers_.push_back({layer, Linear(inputs, layer.units),
                         choose_layer_kernels(spec.dtype, layer.activation, layer.penalty)});
      inputs = layer.units;
    }
    output_ = choose_output_kernels(spec.dtype, spec.layers.back().activation, spec.loss);
  }

  void declare(Arena& parameters, Arena& gradients, Arena& state) override {
    const int count = static_cast<int>(layers_.size());
    for (int i = 0; i < count; ++i) {
      Layer& layer = layers_[i];
      const Linear* tied_to = spec_.tied && i >= count / 2 ? &layers_[count - 1 - i].linear : nullptr;
      layer.linear.declare(parameters, gradients, spec_.dtype, i + 1, backend_.wants_shadows(), tied_to);
      if (tied_to == nullptr) parameters_.push_back({layer.linear.weight, layer.linear.gradient, true});
      parameters_.push_back({layer.linear.bias, layer.linear.bias_gradient, false});
      if (layer.has_kl() && spec_.moving_rho_hat) {
        layer.rho_hat = &state.declare("rho_hat" + std::to_string(i + 1), 1, layer.spec.units, DType::f64);
      }
    }
  }

  void declare_scratch(Arena& scratch, std::int64_t rows) override {
    int number = 0;
    for (Layer& layer : layers_) {
      const std::int64_t units = layer.spec.units;
      const std::string suffix = std::to_string(++number);
      const bool last = &layer == &layers_.back();
      const bool shadowed = backend_.wants_shadows();
      layer.delta = &scratch.declare("delta" + suffix, rows, units, spec_.dtype, shadowed);
      layer.activation =
          last ? layer.delta : &scratch.declare("activation" + suffix, rows, units, spec_.dtype, shadowed);
      layer.sums = &scratch.declare("sums" + suffix, 2, units, DType::f64);
      layer.delta_sums = &scratch.declare("delta_sums" + suffix, 1, units, DType::f64);
      layer.column = &scratch.declare("column" + suffix, 1, units, spec_.dtype);
      layer.kl = &scratch.declare("kl" + suffix, 1, units, DType::f64);
      layer.next_rho_hat = &scratch.declare("next_rho_hat" + suffix, 1, units, DType::f64);
      layer.weight_sums = &scratch.declare("weight_sums" + suffix, 2, layer.linear.weight->cols, DType::f64);
      layer.bias_sums = &scratch.declare("bias_sums" + suffix, 1, units, DType::f64);
    }
  }

  void begin(const StepMemory& memory, bool with_gradient, bool one_chunk) override {
    memory_ = memory;
    with_gradient_ = with_gradient;
    one_chunk_ = one_chunk;
    first_ = true;
  }

  bool needs_means() const override {
    for (const Layer& layer : layers_) {
      if (layer.has_kl()) return true;
    }
    return false;
  }

  void accumulate_means(const Batch& batch) override {
    forward_hidden(batch);
    first_ = false;
  }

  void finish_means() override {
    first_ = true;
    for (Layer& layer : layers_) {
      if (!layer.has_kl()) continue;
      const Tensor& previous = layer.rho_hat != nullptr ? *layer.rho_hat : *layer.next_rho_hat;
      const Kernel kernel = layer.kernels.kl_column(*layer.sums, previous, *layer.next_rho_hat,
                                                    memory_.scalars, layer.spec.rho, layer.spec.beta);
      backend_.map(*layer.column, kernel, {*layer.kl});
    }
  }

  void accumulate(const Batch& batch, bool last) override {
    forward_hidden(batch);
    if (one_chunk_) finish_means();
    forward_output(batch);
    if (with_gradient_) backward(batch, last);
    first_ = false;
  }

  void close(bool logged) override {
    StepTotals* totals = memory_.as_totals();
    backend_.fill(memory_.totals, 0);
    std::vector<Total>& sums = totals_;
    sums.clear();
    sums.push_back({layers_.back().sums->slice_rows(1, 1), 1, &totals->loss});
    for (Layer& layer : layers_) {
      const double beta = layer.spec.beta;
      if (layer.has_kl())
        sums.push_back({*layer.kl, beta, &totals->kl});
      else if (layer.has_penalty())
        sums.push_back({layer.sums->slice_rows(1, 1), beta, &totals->element_penalty});
      if (with_gradient_) sums.push_back({*layer.bias_sums, 1, &totals->squared_gradient});
      if (layer.linear.tied()) continue;
      if (with_gradient_)
        sums.push_back({layer.weight_sums->slice_rows(0, 1), 1, &totals->squared_gradient});
      else
        backend_.map(*layer.linear.gradient, decayed(layer, 0), {*layer.weight_sums});
      sums.push_back({layer.weight_sums->slice_rows(1, 1), 1, &totals->squared_weights});
    }
    backend_.add_totals(sums);
    Tensor one = memory_.totals;
    one.cols = 1;
    backend_.map(one, closing(memory_, logged), {});
  }

  void commit() override {
    for (Layer& layer : layers_) {
      if (layer.rho_hat == nullptr) continue;
      backend_.map(*layer.rho_hat, as_kernel(KeepRhoHat{layer.next_rho_hat->as<double>(), memory_.log}), {});
    }
  }

  const std::vector<Parameter>& parameters() const override { return parameters_; }

  std::optional<SmallModel> small(const StepMemory& memory) const override {
    if (layers_.size() != 2 || spec_.tied) return std::nullopt;
    const Layer& hidden = layers_[0];
    const double beta = hidden.has_penalty() ? hidden.spec.beta : 0.0;
    SmallModel small{};
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      small.parameters[i] = {*parameters_[i].value, *parameters_[i].gradient, {}};
    }
    small.activate = hidden.kernels.activate({}, {});
    small.hidden_delta = hidden.kernels.delta({}, {}, {}, nullptr, beta);
    small.output_delta = output_.delta({}, {}, {}, nullptr, loss_factor());
    if (hidden.has_kl())
      small.kl_column = hidden.kernels.kl_column({}, {}, {}, nullptr, hidden.spec.rho, hidden.spec.beta);
    for (int i = 0; i < 2; ++i) small.decayed[i] = decayed(layers_[i], decay());
    small.close = closing(memory, true);
    (hidden.has_kl() ? small.kl_beta : small.element_beta) = beta;
    if (hidden.rho_hat != nullptr) small.rho_hat = *hidden.rho_hat;
    small.cost = memory.cost;
    small.log = memory.log;
    return small;
  }

  std::int64_t code_width() const override {
    return spec_.code_layer == 0 ? spec_.n_features : layers_[spec_.code_layer - 1].spec.units;
  }

  std::int64_t widest() const override {
    std::int64_t widest = spec_.n_features;
    for (const Layer& layer : layers_) widest = std::max(widest, layer.spec.units);
    return widest;
  }

  double loss_factor() const override {
    if (spec_.loss_reduction == "mean") return 1.0 / static_cast<double>(spec_.n_features);
    return spec_.loss_reduction == "ufldl" && spec_.loss == SquaredError::name ? 0.5 : 1.0;
  }

  void encode(Tensor x, Tensor code, Tensor* work) const override {
    infer(0, spec_.code_layer, x, code, work);
  }

  void decode(Tensor code, Tensor x, Tensor* work) const override {
    infer(spec_.code_layer, static_cast<std::int64_t>(layers_.size()), code, x, work);
  }

  void score(Tensor x, Tensor output, Tensor losses, Tensor* work) const override {
    const std::int64_t last = static_cast<std::int64_t>(layers_.size()) - 1;
    Tensor in = x;
    if (last > 0) {
      in = shaped(work[0], x.rows, layers_[last - 1].spec.units);
      infer(0, last, x, in, work + 1);
    }
    layers_[last].linear.forward(backend_, in, output, output_.row_loss(*layers_[last].linear.bias, x),
                                 {losses});
  }

 private:
  double decay() const { return spec_.decoupled_decay ? 0.0 : spec_.weight_decay; }

  static Tensor rows_of(const Tensor* scratch, const Batch& batch) {
    return scratch->slice_rows(0, batch.rows());
  }

  static Tensor shaped(Tensor memory, std::int64_t rows, std::int64_t cols) {
    return {memory.data, rows, cols, cols, memory.dtype, memory.shadow};
  }

  Tensor input_of(std::size_t index, const Batch& batch) const {
    return index == 0 ? batch.x : rows_of(layers_[index - 1].activation, batch);
  }

  void forward_hidden(const Batch& batch) {
    for (std::size_t i = 0; i + 1 < layers_.size(); ++i) {
      Layer& layer = layers_[i];
      layer.linear.forward(backend_, input_of(i, batch), rows_of(layer.activation, batch),
                           layer.kernels.activate(*layer.linear.bias, batch.weight), {*layer.sums, !first_});
    }
  }

  void forward_output(const Batch& batch) {
    Layer& layer = layers_.back();
    const Kernel kernel =
        output_.delta(*layer.linear.bias, batch.weight, batch.x, memory_.scalars, loss_factor());
    layer.linear.forward(backend_, input_of(layers_.size() - 1, batch), rows_of(layer.delta, batch), kernel,
                         {*layer.sums, !first_});
  }

  void backward(const Batch& batch, bool last_chunk) {
    for (std::size_t i = layers_.size(); i-- > 0;) {
      Layer& layer = layers_[i];
      const Tensor delta = rows_of(layer.delta, batch);
      // A tied matrix gets the decoder's gradient first; the encoder adds its own and finishes it.
      const bool finishes = last_chunk && !layer.linear.tied();
      const bool starts = first_ && (!spec_.tied || layer.linear.tied());
      const Kernel finish = decayed(layer, decay());
      layer.linear.weight_gradient(backend_, input_of(i, batch), delta, !starts, finishes ? &finish : nullptr,
                                   {*layer.weight_sums});
      if (i > 0) {
        Layer& previous = layers_[i - 1];
        const Kernel kernel =
            previous.kernels.delta(rows_of(previous.activation, batch), batch.weight, *previous.column,
                                   memory_.scalars, previous.has_penalty() ? previous.spec.beta : 0.0);
        layer.linear.backward(backend_, delta, rows_of(previous.delta, batch), kernel,
                              {*previous.delta_sums, !first_});
      }
      if (last_chunk) {
        const Tensor& sums = i + 1 == layers_.size() ? *layer.sums : *layer.delta_sums;
        backend_.map(*layer.linear.bias_gradient, bias_gradient(sums), {*layer.bias_sums});
      }
    }
  }

  Kernel decayed(const Layer& layer, double decay) const {
    return with_scalar(spec_.dtype, [&](auto s) {
      using S = decltype(s);
      return as_kernel(DecayedGradient<S>{layer.linear.weight->view<const S>(), static_cast<S>(decay)});
    });
  }

  Kernel closing(const StepMemory& memory, bool logged) const {
    return as_kernel(CloseStep{memory.as_totals(), memory.scalars, memory.cost, logged ? memory.log : nullptr,
                               loss_factor(), decay() / 2});
  }

  Kernel bias_gradient(const Tensor& sums) const {
    return with_scalar(spec_.dtype,
                       [&](auto s) { return as_kernel(BiasGradient<decltype(s)>{sums.as<double>()}); });
  }

  void infer(std::int64_t from, std::int64_t to, Tensor in, Tensor out, Tensor* work) const {
    if (from == to) return backend_.copy(out, in);
    for (std::int64_t i = from; i < to; ++i) {
      const Linear& linear = layers_[i].linear;
      const Tensor next = i + 1 == to ? out : shaped(work[(i - from) % 2], in.rows, linear.units());
      linear.forward(backend_, in, next, layers_[i].kernels.infer(*linear.bias));
      in = next;
    }
  }

  const ModelSpec spec_;
  Backend& backend_;
  std::vector<Layer> layers_;
  OutputKernels output_{};
  std::vector<Parameter> parameters_;
  std::vector<Total> totals_;  // of a step; kept so that no step allocates
  StepMemory memory_;
  bool with_gradient_ = false, one_chunk_ = true, first_ = true;
};

}  // namespace

std::unique_ptr<Model> make_layered(const ModelSpec& spec, Backend& backend) {
  return std::make_unique<Layered>(spec, backend);
}

}  // namespace fastsae
