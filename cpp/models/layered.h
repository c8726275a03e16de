// A list of layers with a reconstruction loss, sparsity penalties on hidden layers and weight decay.
#pragma once

#include <map>

#include "models/contraction.h"
#include "models/corruption.h"
#include "models/layer.h"
#include "models/layer_kernels.h"
#include "models/softmax.h"
#include "models/winners.h"

namespace fastsae {

// A layer and what a step keeps of it.
struct Stage {
  std::unique_ptr<Layer> layer;
  LayerKernels kernels;            // of a layer with weights
  Winners winners;                 // of a layer with weights
  std::int64_t places_stage = -1;  // whose places the layer writes or reads
  Tensor* rho_hat = nullptr;       // [1 x units] doubles; only where it moves
  // Scratch. Rows are those of the batch, and each is as long as the layer's output.
  Tensor* activation = nullptr;  // the last layer's holds its delta
  Tensor* delta = nullptr;
  Tensor* work = nullptr;    // of the layer; null where it needs none
  Tensor* places = nullptr;  // where a pool keeps them
  Tensor* sums = nullptr;    // [2 x channels] hidden: of a and of the penalty; last: of delta and of the loss
  Tensor* delta_sums = nullptr;    // [1 x units]
  Tensor* unit_sums = nullptr;     // [1 x units] of a; only where each position is a unit
  Tensor* column = nullptr;        // [1 x units] KL slopes, 0 without KL
  Tensor* kl = nullptr;            // [1 x units] KL values
  Tensor* next_rho_hat = nullptr;  // [1 x units]
  Tensor* weight_sums = nullptr;   // [2 x inputs] squared gradient, squared weight
  Tensor* bias_sums = nullptr;     // [1 x channels] squared gradient

  const LayerSpec& spec() const { return layer->spec(); }
  // Whether each position of a map has a KL slope of its own: the units are then the columns of [rows x size].
  bool has_kl_by_position() const { return spec().has_kl() && spec().per_position; }
};

class Layered final : public Model {
 public:
  Layered(const ModelSpec& spec, Backend& backend);

  void declare(Arena& parameters, Arena& gradients, Arena&, Arena& state) override;
  void declare_scratch(Arena& scratch, std::int64_t rows) override;

  void begin(const StepMemory& memory, bool with_gradient, bool one_chunk) override;
  bool needs_means() const override;
  void accumulate_means(const Batch& batch) override;
  void finish_means() override;
  void accumulate(const Batch& batch, bool last) override;
  void close(bool logged) override;
  void commit() override;

  const std::vector<Parameter>& parameters() const override { return parameters_; }
  std::optional<SmallModel> small(const StepMemory& memory) const override;
  std::int64_t code_width() const override { return code_shape().size(); }
  bool draws_noise() const override;
  bool needs_dense_rows() const override { return dense_rows_; }
  bool ranks_rows() const override;

  void encode(Tensor x, Tensor code, const Work& work) const override;
  void decode(Tensor code, Tensor output, const Work& work) const override;
  void reconstruct(Tensor x, Tensor output, const Work& work) const override;
  void encode_distribution(Tensor x, Tensor moments, const Work& work) const override;
  bool has_distribution() const override {
    return code_stage_ > 0 && stage(code_stage_ - 1).spec().kind == "sampling";
  }
  void score(Tensor x, Tensor target, Tensor output, Tensor losses, const Work& work) const override;
  void score_code(Tensor code, Tensor target, Tensor output, Tensor losses, const Work& work) const override;
  double loss_factor() const override;
  std::int64_t widest() const override;
  std::int64_t layer_work(std::int64_t rows) const override;
  std::int64_t output_positions() const override { return stages_.back().spec().out.positions(); }

 private:
  using Index = std::int64_t;  // of a stage
  static constexpr Index kNone = -1;

  void add_stage(const LayerSpec& spec);
  // Before a layer that reads images, or one that does not: the order it needs.
  void order_as(bool channels_last, const Shape& shape);
  const Stage& stage(Index index) const { return stages_[static_cast<std::size_t>(index)]; }
  Stage& stage(Index index) { return stages_[static_cast<std::size_t>(index)]; }
  Index depth() const { return static_cast<Index>(stages_.size()); }
  Stage& output() { return stages_.back(); }
  const Stage& output() const { return stages_.back(); }
  Shape code_shape() const { return code_stage_ == 0 ? input_shape_ : stage(code_stage_ - 1).spec().out; }
  // The order of what stands before a stage, if it is an image.
  bool is_channels_last(Index index) const {
    return index > 0 && channels_last_[static_cast<std::size_t>(index - 1)];
  }

  // A batch on its way through the layers.
  Context context_of(const Stage& stage, const Batch& batch) const;
  Tensor input_of(Index index, const Batch& batch) const;
  Tensor weight_of(const Stage& stage, const Batch& batch) const;
  Tensor target_of(const Batch& batch) const;
  Kernel output_delta(const Batch& batch) const;
  void start(const Batch& batch);
  void forward_hidden(const Batch& batch);
  void sum_units(const Stage& stage, const Batch& batch);
  void forward_output(const Batch& batch);
  void backward(const Batch& batch, bool last_chunk);
  // The delta of a hidden layer with weights from that of the layer behind it.
  void backward_hidden(const Stage& stage, const Layer& behind, const Context& context, Tensor delta,
                       const Batch& batch);

  double decay_of(const Stage& stage) const {
    return spec_.decoupled_decay ? 0.0 : stage.spec().weight_decay;
  }
  double penalty_of(const Stage& stage) const;
  bool contracts(Index index) const { return contraction_ != nullptr && index < code_stage_; }
  Contraction::Pass contraction_pass(const Batch& batch) const;
  Kernel finished(Index index, const Batch& batch) const;
  Tensor delta_sums(Index index) const;
  Kernel decayed(const Stage& stage) const;
  Kernel weight_cost(const Stage& stage) const;
  Kernel closing(const StepMemory& memory, bool logged) const;
  Kernel bias_gradient(const Tensor& sums, std::int64_t channels) const;

  void infer(Index from, Index to, Tensor in, Tensor out, const Work& work) const;
  void run(Index from, Index to, Tensor in, Tensor out, const Work& work) const;
  Context context_of(Index index, std::int64_t rows, const Work& work) const;
  Tensor ordered_for(Index index, Tensor in, const Work& work) const;
  std::int64_t places_before(Index index, std::int64_t rows) const;
  Tensor buffer_beside(const Tensor& in, const Shape& shape, const Work& work) const;
  void score_from(Index from, Tensor in, Tensor target, Tensor output, Tensor losses, const Work& work) const;

  const ModelSpec spec_;
  Backend& backend_;
  std::vector<Stage> stages_;
  std::vector<bool> channels_last_;  // the order of each stage's output
  std::vector<Index> stage_of_;      // of each layer of the list; kNone of a reshape
  Shape input_shape_;
  Index code_stage_ = 0;
  bool dense_rows_ = false;
  Corruption corruption_;
  OutputKernels output_{};
  std::optional<Softmax> softmax_;            // of the output, which has no kernels then
  std::unique_ptr<Contraction> contraction_;  // of the encoder, or null
  std::vector<Parameter> parameters_;
  std::map<std::int64_t, Tensor*> spread_weights_;  // [1 x rows * positions], by positions
  Tensor* ordered_target_ = nullptr;                // where the output is an image with channels last
  Tensor* ordered_emphasis_ = nullptr;              // the same
  std::vector<Total> totals_;                       // of a step; kept so that no step allocates
  StepMemory memory_;
  bool with_gradient_ = false, one_chunk_ = true, first_ = true;
};

}  // namespace fastsae
