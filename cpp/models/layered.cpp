// One step, L layers, delta_l = dJ/dz_l:
//   a_l     = f_l(a_{l-1} W_l' + b_l)            sums of a_l in the epilogue
//   column  = beta/W dKL/d(mean a_l)             from those sums, h numbers
//   delta_L = w/W dloss/dz_L                     in the epilogue of the last product; the output is never stored
//   delta_l = (delta_{l+1} W_{l+1} + w column + w beta/W penalty') f'(a_l)     in the epilogue
//   dW_l    = delta_l' a_{l-1} + lambda W_l + mu sign(W_l),   db_l = sum of delta_l
#include "models/layered.h"

#include <algorithm>

#include "core/error.h"
#include "models/sampling.h"

namespace fastsae {
namespace {

bool reads_images(const std::string& kind) {
  return kind != "dense" && kind != "reshape" && kind != "gaussian" && kind != "sampling";
}

LayerSpec order_spec(const Shape& shape, bool to_last) {
  LayerSpec spec{};
  spec.kind = to_last ? "channels_last" : "channels_first";
  spec.in = spec.out = shape;
  spec.activation = Identity::name;
  spec.penalty = NoPenalty::name;
  return spec;
}

Tensor rows_of(const Tensor* scratch, const Batch& batch) { return scratch->slice_rows(0, batch.rows()); }

}  // namespace

Layered::Layered(const ModelSpec& spec, Backend& backend)
    : spec_(spec), backend_(backend), corruption_(spec) {
  const auto count = static_cast<Index>(spec.layers.size());
  FS_REQUIRE(!spec.layers.empty() && spec.layers.back().out.size() == spec.n_outputs,
             "layers: the last layer must have as many units as there are outputs");
  FS_REQUIRE(spec.code_layer >= 0 && spec.code_layer <= count, "n_encoder_layers: out of range");
  input_shape_ = spec.layers.front().in;
  FS_REQUIRE(input_shape_.size() == spec.n_features, "layers: the first layer must read n_features numbers");
  for (Index i = 0; i < count; ++i) {
    const LayerSpec& layer = spec.layers[static_cast<std::size_t>(i)];
    FS_REQUIRE(layer.out.size() >= 1, "layers: expected units >= 1, got ", layer.out.size());
    order_as(reads_images(layer.kind), layer.in);
    if (i + 1 == count && layer.activation == Softmax::name) softmax_.emplace();
    const bool computes = layer.kind != "reshape", gaussian = layer.kind == "gaussian";
    if (computes) add_stage(gaussian ? heads_of(layer) : layer);
    stage_of_.push_back(computes ? depth() - 1 : kNone);
    if (gaussian) add_stage(sampling_of(layer));
    if (i + 1 == spec.code_layer) code_stage_ = depth();
  }
  FS_REQUIRE(!stages_.empty() && output().spec().out.size() == spec.n_outputs,
             "layers: the last layer must have weights");
  for (Stage& stage : stages_) {
    if (stage.spec().places_of > 0) stage.places_stage = stage_of_.at(stage.spec().places_of - 1);
  }
  if (softmax_) {
    FS_REQUIRE(spec.loss == CrossEntropy::name, "loss='", spec.loss, "' needs another output than softmax");
    FS_REQUIRE(output().spec().kind == "dense", "layers: softmax needs a dense output layer");
    FS_REQUIRE(!corruption_.has_emphasis(), "emphasis needs another output than softmax");
  } else {
    output_ = choose_output_kernels(spec.dtype, output().spec().activation, spec.loss);
  }
  contraction_ = make_contraction(spec, backend);
}

void Layered::add_stage(const LayerSpec& spec) {
  const bool images = reads_images(spec.kind) && spec.kind != "channels_first";
  LayerSpec made = spec;
  made.below = depth() > 0 ? output().spec().out : spec.in;
  const std::string activation = softmax_ ? Identity::name : spec.activation;  // the product leaves logits
  stages_.push_back(
      {make_layer(made), choose_layer_kernels(spec_.dtype, activation, spec.penalty), Winners(spec)});
  if (stages_.back().layer->places_size(1) > 0) stages_.back().places_stage = depth() - 1;
  channels_last_.push_back(images && spec.out.has_order());
  dense_rows_ = dense_rows_ || reads_images(spec.kind);  // input, code or output may be images
}

void Layered::order_as(bool channels_last, const Shape& shape) {
  if (shape.has_order() && is_channels_last(depth()) != channels_last)
    add_stage(order_spec(shape, channels_last));
}

void Layered::declare(Arena& parameters, Arena& gradients, Arena&, Arena& state) {
  const std::size_t count = stage_of_.size();
  for (std::size_t i = 0; i < count; ++i) {
    if (stage_of_[i] == kNone) continue;
    Stage& stage = this->stage(stage_of_[i]);
    const Index mirror = spec_.tied && i >= count / 2 ? stage_of_[count - 1 - i] : kNone;
    const Layer* tied_to = mirror == kNone ? nullptr : this->stage(mirror).layer.get();
    Layer& layer = *stage.layer;
    layer.declare(parameters, gradients, spec_.dtype, backend_.wants_shadows(), tied_to);
    if (!layer.has_weights()) continue;
    if (tied_to == nullptr) parameters_.push_back({layer.weight, layer.gradient, layer.spec().weight_decay});
    parameters_.push_back({layer.bias, layer.bias_gradient, 0});
    if (layer.spec().has_kl() && spec_.moving_rho_hat) {
      const std::string name = text("rho_hat", layer.spec().number);
      stage.rho_hat = &state.declare(name, 1, layer.spec().units(), DType::f64);
    }
  }
  FS_REQUIRE(output().layer->has_weights(), "layers: the last layer must have weights");
}

void Layered::declare_scratch(Arena& scratch, std::int64_t rows) {
  int number = 0;
  const bool shadowed = backend_.wants_shadows();
  spread_weights_.clear();
  for (Stage& stage : stages_) {
    const LayerSpec& spec = stage.spec();
    const std::int64_t channels = spec.out.channels, positions = spec.out.positions();
    const std::int64_t units = stage.has_kl_by_position() ? spec.units() : channels;
    const std::string suffix = std::to_string(++number);
    const bool last = &stage == &output();
    stage.delta = &scratch.declare("delta" + suffix, rows, spec.out.size(), spec_.dtype, shadowed);
    stage.activation =
        last ? stage.delta
             : &scratch.declare("activation" + suffix, rows, spec.out.size(), spec_.dtype, shadowed);
    const std::int64_t work = stage.layer->work_size(rows);
    stage.work = work > 0 ? &scratch.declare("work" + suffix, 1, work, spec_.dtype, shadowed) : nullptr;
    const std::int64_t places = stage.layer->places_size(rows);
    stage.places = places > 0 ? &scratch.declare("places" + suffix, 1, places, spec_.dtype) : nullptr;
    stage.layer->declare_scratch(scratch, spec_.dtype);
    if (!stage.layer->has_weights()) continue;
    stage.sums = &scratch.declare("sums" + suffix, 2, channels, DType::f64);
    stage.delta_sums = &scratch.declare("delta_sums" + suffix, 1, units, DType::f64);
    if (units > channels) stage.unit_sums = &scratch.declare("unit_sums" + suffix, 1, units, DType::f64);
    stage.column = &scratch.declare("column" + suffix, 1, units, spec_.dtype);
    stage.kl = &scratch.declare("kl" + suffix, 1, units, DType::f64);
    stage.next_rho_hat = &scratch.declare("next_rho_hat" + suffix, 1, units, DType::f64);
    stage.winners.declare(scratch, rows, suffix, spec_.dtype);
    stage.weight_sums = &scratch.declare("weight_sums" + suffix, 2, stage.layer->weight->cols, DType::f64);
    stage.bias_sums = &scratch.declare("bias_sums" + suffix, 1, channels, DType::f64);
    if (positions > 1 && spread_weights_.count(positions) == 0)
      spread_weights_[positions] = &scratch.declare("weights" + suffix, 1, rows * positions, spec_.dtype);
  }
  corruption_.declare_scratch(scratch, rows, shadowed);
  if (contraction_) contraction_->declare_scratch(scratch, rows);
  if (softmax_) softmax_->declare_scratch(scratch, rows);
  if (!channels_last_.back()) return;
  ordered_target_ = &scratch.declare("target", rows, output().spec().out.size(), spec_.dtype);
  if (corruption_.has_emphasis())
    ordered_emphasis_ = &scratch.declare("ordered_emphasis", rows, output().spec().out.size(), spec_.dtype);
}

void Layered::begin(const StepMemory& memory, bool with_gradient, bool one_chunk) {
  memory_ = memory;
  with_gradient_ = with_gradient;
  one_chunk_ = one_chunk;
  first_ = true;
}

bool Layered::needs_means() const {
  return std::any_of(stages_.begin(), stages_.end(),
                     [](const Stage& stage) { return stage.spec().has_kl() || stage.layer->needs_means(); });
}

bool Layered::draws_noise() const {
  return corruption_.exists() || (contraction_ && contraction_->draws_noise()) ||
         std::any_of(stages_.begin(), stages_.end(),
                     [](const Stage& stage) { return stage.layer->draws_noise(); });
}

bool Layered::ranks_rows() const {
  return std::any_of(stages_.begin(), stages_.end(),
                     [](const Stage& stage) { return stage.winners.of_batch(); });
}

void Layered::accumulate_means(const Batch& batch) {
  start(batch);
  forward_hidden(batch);
  first_ = false;
}

void Layered::finish_means() {
  first_ = true;
  for (Stage& stage : stages_) {
    stage.layer->finish_means(backend_, memory_);
    const LayerSpec& spec = stage.spec();
    if (!spec.has_kl()) continue;
    const Tensor& previous = stage.rho_hat != nullptr ? *stage.rho_hat : *stage.next_rho_hat;
    const Tensor& sums = stage.unit_sums != nullptr ? *stage.unit_sums : *stage.sums;
    const Kernel kernel = stage.kernels.kl_column(sums, previous, *stage.next_rho_hat, memory_.scalars,
                                                  spec.rho, spec.beta, spec.share());
    backend_.map(*stage.column, kernel, {*stage.kl});
  }
}

void Layered::accumulate(const Batch& batch, bool last) {
  start(batch);
  forward_hidden(batch);
  if (one_chunk_) finish_means();
  if (contraction_) contraction_->forward(contraction_pass(batch), !with_gradient_);
  forward_output(batch);
  if (with_gradient_) backward(batch, last);
  first_ = false;
}

void Layered::close(bool logged) {
  StepTotals* totals = memory_.as_totals();
  backend_.fill(memory_.totals, 0);
  std::vector<Total>& sums = totals_;
  sums.clear();
  sums.push_back({output().sums->slice_rows(1, 1), 1, &totals->loss});
  if (contraction_) contraction_->add_cost(totals, sums);
  for (Stage& stage : stages_) {
    const Layer& layer = *stage.layer;
    layer.add_cost(totals, sums);
    if (!layer.has_weights()) continue;
    if (stage.spec().has_kl())
      sums.push_back({*stage.kl, stage.spec().beta, &totals->kl});
    else if (stage.spec().has_penalty())
      sums.push_back({stage.sums->slice_rows(1, 1), penalty_of(stage), &totals->element_penalty});
    if (with_gradient_) sums.push_back({*stage.bias_sums, 1, &totals->squared_gradient});
    if (layer.tied()) continue;
    if (with_gradient_)
      sums.push_back({stage.weight_sums->slice_rows(0, 1), 1, &totals->squared_gradient});
    else
      backend_.map(*layer.weight, weight_cost(stage), {stage.weight_sums->slice_rows(1, 1)});
    sums.push_back({stage.weight_sums->slice_rows(1, 1), 1, &totals->twice_decay});
  }
  backend_.add_totals(sums);
  Tensor one = memory_.totals;
  one.cols = 1;
  backend_.map(one, closing(memory_, logged), {});
}

void Layered::commit() {
  for (Stage& stage : stages_) {
    if (stage.rho_hat == nullptr) continue;
    backend_.map(*stage.rho_hat, as_kernel(KeepRhoHat{stage.next_rho_hat->as<double>(), memory_.log}), {});
  }
}

std::optional<SmallModel> Layered::small(const StepMemory& memory) const {
  const bool plain = std::all_of(stages_.begin(), stages_.end(), [](const Stage& stage) {
    return stage.spec().kind == "dense" && !stage.winners.any();
  });
  if (!plain || corruption_.exists() || contraction_ || softmax_ || stages_.size() != 2 || spec_.tied)
    return std::nullopt;
  const Stage& hidden = stage(0);
  const double beta = hidden.spec().has_penalty() ? hidden.spec().beta : 0.0;
  SmallModel small{};
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    small.parameters[i] = {*parameters_[i].value, *parameters_[i].gradient, {}};
  }
  small.activate = hidden.kernels.activate({}, {});
  small.hidden_delta = hidden.kernels.delta({}, {}, {}, nullptr, beta);
  small.output_delta = output_.delta({}, {}, {}, nullptr, loss_factor());
  if (hidden.spec().has_kl())
    small.kl_column = hidden.kernels.kl_column({}, {}, {}, nullptr, hidden.spec().rho, beta, 1);
  for (int i = 0; i < 2; ++i) small.decayed[i] = decayed(stage(i));
  small.close = closing(memory, true);
  (hidden.spec().has_kl() ? small.kl_beta : small.element_beta) = beta;
  if (hidden.rho_hat != nullptr) small.rho_hat = *hidden.rho_hat;
  small.cost = memory.cost;
  small.log = memory.log;
  return small;
}

double Layered::loss_factor() const {
  if (spec_.loss_reduction == "mean") return 1.0 / static_cast<double>(spec_.n_outputs);
  return spec_.loss_reduction == "ufldl" && spec_.loss == SquaredError::name ? 0.5 : 1.0;
}

Context Layered::context_of(const Stage& stage, const Batch& batch) const {
  const Tensor* places = stage.places_stage == kNone ? nullptr : this->stage(stage.places_stage).places;
  return {backend_,
          stage.work == nullptr ? Tensor{} : *stage.work,
          places == nullptr ? Tensor{} : *places,
          &memory_,
          &batch,
          first_};
}

Tensor Layered::input_of(Index index, const Batch& batch) const {
  if (index > 0) return rows_of(stage(index - 1).activation, batch);
  return corruption_.exists() ? corruption_.input(batch) : batch.x;
}

// Of each row of a layer's output as its kernels see it.
Tensor Layered::weight_of(const Stage& stage, const Batch& batch) const {
  const std::int64_t positions = stage.spec().out.positions();
  return positions == 1 ? batch.weight : shaped(*spread_weights_.at(positions), 1, batch.rows() * positions);
}

Tensor Layered::target_of(const Batch& batch) const {
  return ordered_target_ == nullptr ? batch.target : rows_of(ordered_target_, batch);
}

// The step of the output, whose target is clean.
Kernel Layered::output_delta(const Batch& batch) const {
  const Stage& stage = output();
  const Shape& shape = stage.spec().out;
  const Tensor target = pixels(target_of(batch), shape), weight = weight_of(stage, batch);
  const Tensor& bias = *stage.layer->bias;
  if (!corruption_.has_emphasis()) return output_.delta(bias, weight, target, memory_.scalars, loss_factor());
  const Tensor emphasis =
      ordered_emphasis_ == nullptr ? corruption_.emphasis(batch) : rows_of(ordered_emphasis_, batch);
  return output_.emphasised_delta(bias, weight, target, pixels(emphasis, shape), memory_.scalars,
                                  loss_factor());
}

// What a pass over this batch reads beside the activations.
void Layered::start(const Batch& batch) {
  for (const auto& [positions, spread] : spread_weights_) {
    with_scalar(spec_.dtype, [&, positions = positions, spread = spread](auto s) {
      using S = decltype(s);
      backend_.map(shaped(*spread, batch.rows(), positions), as_kernel(SpreadWeight<S>{batch.weight.as<S>()}),
                   {});
    });
  }
  if (corruption_.exists()) corruption_.draw(backend_, batch, memory_.scalars);
  if (ordered_target_ != nullptr)
    reorder(backend_, batch.target, rows_of(ordered_target_, batch), output().spec().out, true);
  if (ordered_emphasis_ != nullptr)
    reorder(backend_, corruption_.emphasis(batch), rows_of(ordered_emphasis_, batch), output().spec().out,
            true);
}

void Layered::forward_hidden(const Batch& batch) {
  for (Index i = 0; i + 1 < depth(); ++i) {
    Stage& stage = this->stage(i);
    const Tensor out = rows_of(stage.activation, batch);
    if (!stage.layer->has_weights()) {
      stage.layer->forward(context_of(stage, batch), input_of(i, batch), out, {});
      continue;
    }
    const Kernel kernel = stage.kernels.activate(*stage.layer->bias, weight_of(stage, batch));
    stage.layer->forward(context_of(stage, batch), input_of(i, batch), out,
                         {&kernel, {*stage.sums, !first_}});
    if (stage.winners.any()) stage.winners.keep(backend_, out, batch.weight);
    if (stage.unit_sums != nullptr) sum_units(stage, batch);
  }
}

// A product sums over rows and positions; here each position has a sum of its own.
void Layered::sum_units(const Stage& stage, const Batch& batch) {
  with_scalar(spec_.dtype, [&](auto s) {
    const Kernel kernel = as_kernel(WeightedSum<decltype(s)>{batch.weight.as<decltype(s)>()});
    backend_.map(rows_of(stage.activation, batch), kernel, {*stage.unit_sums, !first_});
  });
}

void Layered::forward_output(const Batch& batch) {
  Stage& stage = output();
  if (softmax_) {
    const Tensor logits = rows_of(stage.delta, batch);
    const Kernel kernel = stage.kernels.infer(*stage.layer->bias);
    stage.layer->forward(context_of(stage, batch), input_of(depth() - 1, batch), logits, {&kernel});
    return softmax_->delta(backend_, logits, target_of(batch), batch.weight, memory_.scalars, loss_factor(),
                           {*stage.sums, !first_});
  }
  const Kernel kernel = output_delta(batch);
  stage.layer->forward(context_of(stage, batch), input_of(depth() - 1, batch), rows_of(stage.delta, batch),
                       {&kernel, {*stage.sums, !first_}});
}

void Layered::backward(const Batch& batch, bool last_chunk) {
  for (Index i = depth(); i-- > 0;) {
    Stage& stage = this->stage(i);
    const Layer& layer = *stage.layer;
    const Tensor delta = rows_of(stage.delta, batch);
    const Context context = context_of(stage, batch);
    if (layer.has_weights()) {
      // A tied matrix gets the decoder's gradient first; the encoder adds its own and finishes it.
      const bool finishes = last_chunk && !layer.tied();
      bool starts = first_ && (!spec_.tied || layer.tied());
      if (contracts(i) && contraction_->add_weight_gradient(contraction_pass(batch), i, !starts))
        starts = false;
      const Kernel finish = finished(i, batch);
      layer.weight_gradient(context, input_of(i, batch), delta, !starts,
                            {finishes ? &finish : nullptr, {*stage.weight_sums}});
    }
    if (i > 0) {
      const Stage& previous = this->stage(i - 1);
      if (previous.layer->has_weights())
        backward_hidden(previous, layer, context, delta, batch);
      else
        layer.backward(context, delta, rows_of(previous.delta, batch), {});
      if (contracts(i - 1)) contraction_->add_delta(contraction_pass(batch), i - 1);
    }
    if (last_chunk && layer.has_weights()) {
      const Kernel kernel = bias_gradient(delta_sums(i), stage.spec().out.channels);
      backend_.map(*layer.bias_gradient, kernel, {*stage.bias_sums});
    }
  }
}

void Layered::backward_hidden(const Stage& stage, const Layer& behind, const Context& context, Tensor delta,
                              const Batch& batch) {
  const Tensor out = rows_of(stage.delta, batch);
  const bool by_position = stage.unit_sums != nullptr;
  Tensor activation = rows_of(stage.activation, batch);
  if (!by_position) activation = pixels(activation, stage.spec().out);
  const Tensor weight = by_position ? batch.weight : weight_of(stage, batch);
  const Kernel kernel =
      stage.kernels.delta(activation, weight, *stage.column, memory_.scalars, penalty_of(stage));
  const Sums sums{*stage.delta_sums, !first_};
  if (!by_position) return behind.backward(context, delta, out, {&kernel, sums});
  behind.backward(context, delta, out, {});
  backend_.map(out, kernel, sums);
}

// The weight of the elementwise penalty on one element: the mean over the positions of a map counts, unless each is a
// unit.
double Layered::penalty_of(const Stage& stage) const {
  const LayerSpec& spec = stage.spec();
  return spec.has_penalty() ? spec.beta * spec.share() : 0.0;
}

Kernel Layered::decayed(const Stage& stage) const {
  return with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    const View<const S> weight = stage.layer->weight->view<const S>();
    const auto decay = static_cast<S>(decay_of(stage)), l1 = static_cast<S>(stage.spec().weight_l1);
    return l1 > 0 ? as_kernel(SparseGradient<S>{weight, decay, l1})
                  : as_kernel(DecayedGradient<S>{weight, decay});
  });
}

// What the same sums without a gradient.
Kernel Layered::weight_cost(const Stage& stage) const {
  return with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    return as_kernel(WeightCost<S>{static_cast<S>(decay_of(stage)), static_cast<S>(stage.spec().weight_l1)});
  });
}

// The end of a weight gradient.
Kernel Layered::finished(Index index, const Batch& batch) const {
  std::optional<Kernel> own;
  if (contracts(index)) own = contraction_->finish_weights(contraction_pass(batch), decay_of(stage(index)));
  return own ? *own : decayed(stage(index));
}

// Of each channel, over all rows; the output's sums begin with them.
Tensor Layered::delta_sums(Index index) const {
  if (index + 1 == depth()) return *stage(index).sums;
  return contracts(index) ? contraction_->delta_sums(index) : *stage(index).delta_sums;
}

Contraction::Pass Layered::contraction_pass(const Batch& batch) const {
  return {stages_, batch, input_of(0, batch), memory_, first_};
}

Kernel Layered::closing(const StepMemory& memory, bool logged) const {
  return as_kernel(CloseStep{memory.as_totals(), memory.scalars, memory.cost, logged ? memory.log : nullptr,
                             loss_factor()});
}

Kernel Layered::bias_gradient(const Tensor& sums, std::int64_t channels) const {
  return with_scalar(spec_.dtype, [&](auto s) {
    return as_kernel(BiasGradient<decltype(s)>{sums.as<double>(), sums.cols / channels, channels});
  });
}

std::unique_ptr<Model> make_layered(const ModelSpec& spec, Backend& backend) {
  return std::make_unique<Layered>(spec, backend);
}

}  // namespace fastsae
