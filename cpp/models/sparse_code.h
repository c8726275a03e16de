// Overcomplete dictionaries: an encoder, a decoder, and a code that is mostly zero.
#pragma once

#include <functional>

#include "kernels/list.h"
#include "models/model.h"

namespace fastsae {

class SparseCode final : public Model {
 public:
  SparseCode(const ModelSpec& spec, Backend& backend);

  void declare(Arena& parameters, Arena& gradients, Arena& matrices, Arena& state) override;
  bool needs_matrices() const override { return dense_; }
  void write_matrices() override;
  void take_updates(std::vector<MatrixUpdate> updates) override { updates_ = std::move(updates); }
  void set_step(StepScalars& scalars, std::int64_t step) override;
  void declare_scratch(Arena& scratch, std::int64_t rows) override;

  void begin(const StepMemory& memory, bool with_gradient, bool one_chunk) override;
  bool needs_means() const override { return false; }
  void accumulate_means(const Batch&) override {}
  void finish_means() override {}
  void accumulate(const Batch& batch, bool last) override;
  void close(bool logged) override;
  void commit() override;
  void reset_metrics() override;

  const std::vector<Parameter>& parameters() const override { return parameters_; }
  std::optional<SmallModel> small(const StepMemory&) const override { return std::nullopt; }
  std::int64_t code_width() const override { return code_.latents; }
  bool draws_noise() const override { return false; }
  bool needs_dense_rows() const override { return false; }
  bool ranks_rows() const override { return true; }

  void encode(Tensor x, Tensor code, const Work& work) const override;
  void encode_blocks(Tensor x, Tensor room, const Work& work, const TakeBlock& take) const override;
  void decode(Tensor code, Tensor output, const Work& work) const override;
  void reconstruct(Tensor x, Tensor output, const Work& work) const override;
  void encode_distribution(Tensor x, Tensor moments, const Work& work) const override;
  bool has_distribution() const override { return false; }
  void score(Tensor x, Tensor target, Tensor output, Tensor losses, const Work& work) const override;
  void score_code(Tensor code, Tensor target, Tensor output, Tensor losses, const Work& work) const override;
  double loss_factor() const override;
  std::int64_t widest() const override { return std::max(spec_.n_features, spec_.n_outputs); }
  std::int64_t layer_work(std::int64_t rows) const override;
  std::int64_t output_positions() const override { return 1; }

 private:
  // A tile is a list if a row has at most one active element in so many latents, on average.
  static constexpr std::int64_t kListShare = 64;
  struct Weights {
    Tensor *encoder, *bias, *decoder, *decoder_bias;  // `bias`: of the gate, for a gated code
    Tensor *threshold = nullptr, *magnitude_bias = nullptr, *log_gain = nullptr, *skip = nullptr;
  };
  struct Selected {  // scratch of selected elements
    Tensor *starts = nullptr, *latents = nullptr, *values = nullptr, *slopes = nullptr;
  };
  struct Tile {  // scratch of a range of rows with all latents
    Tensor *z = nullptr, *code = nullptr, *delta = nullptr, *opening = nullptr, *opening_slope = nullptr;
  };

  struct CallMemory;
  struct Rows {  // of a tile
    Tensor inputs, target, extra, weight, errors, losses, gate_losses;
    std::int64_t first;  // of the batch
  };

  bool is(const char* activation) const { return code_.activation == activation; }
  bool is_rescaled() const { return code_.decoder_norm == "rescale"; }
  bool weighs_by_norm() const;
  bool pulls() const;
  bool counts_rows() const { return code_.sparsity == "quadratic_rows"; }
  bool needs_norms() const;
  bool counts_dead() const { return code_.dead_after >= 0; }
  bool has_auxiliary() const { return !dense_ && counts_dead() && code_.aux_weight > 0 && code_.aux_k > 0; }
  // Of each prefix, and of what else is decoded: the dead latents, or the gates.
  std::int64_t errors_per_row() const { return prefixes_.count + (has_auxiliary() || is("gated") ? 1 : 0); }
  Tensor errors_of(std::int64_t slot, std::int64_t first, std::int64_t count) const;
  std::int64_t most_selected(std::int64_t rows) const;
  std::int64_t tile_rows(std::int64_t rows) const;
  Tensor* declare_parameter(Arena& parameters, Arena& gradients, const char* name, std::int64_t rows,
                            std::int64_t cols, bool by_model = false);
  void declare_selected(Arena& scratch, Selected& made, const std::string& name, std::int64_t rows,
                        std::int64_t capacity);
  void declare_index(Arena& scratch, std::int64_t capacity);
  void declare_tiles(Arena& scratch, std::int64_t rows);
  void declare_lists(Arena& scratch, std::int64_t rows);
  CodeConstants constants() const;
  CodeSums* sums() const { return static_cast<CodeSums*>(sums_->data); }
  Prefixes whole() const;
  Decoding decoding_of(const Code& code, const Tensor& extra, const Prefixes& prefixes) const;
  LatentIndex index() const;
  LatentRows latent_rows(bool project) const;
  bool projects() const { return code_.decoder_norm == "unit" && code_.project_gradient; }
  // Sums of the slopes by z, [1 x latents].
  Tensor delta_sums() const {
    return is("gated") ? shaped(through_->slice_rows(1, 1), 1, code_.latents) : *bias_gradient_;
  }
  const Tensor& gradient_of(const Tensor* value) const;

  // The parts of a step.
  void scalar_pass(const Kernel& kernel);
  void add_variance(const Tensor& rows, const Tensor& copy, double* to);
  void accumulate_selected(const Batch& batch);
  Code select(const Batch& batch);
  Code select_dead(std::int64_t rows);
  void make_coefficients(const Code& code, const Tensor& scale, bool rectified) const;
  CodeGradient add_auxiliary(const Code& dead, std::int64_t slots);
  void finish_vectors();
  // Of one in tiles.
  void accumulate_tiles(const Batch& batch);
  template <class S>
  void thresholded_tile(const Rows& part);
  template <class S>
  void gated_tile(const Rows& part);
  template <class S>
  void count_rows(const Rows& part, const Tensor& code);
  void take_tile(const Rows& part, const Tensor& product, const Kernel* begin, const Kernel& forward,
                 const std::function<void()>& rest);
  void add_gradients(const Rows& part, const Tensor& code, const Tensor& delta);
  template <class S>
  PenaltySlopes<S> penalty_slopes() const;
  template <class S>
  void decode_tile(const Rows& part, const Tensor& code, const Tensor& extra, const double* factor,
                   const Tensor& errors, const Tensor& losses);
  template <class S>
  Thresholded<S> thresholded(const Tensor& weight, std::int64_t first) const;
  template <class S>
  GateParameters<S> gate(const Tensor& weight, const Tensor& gain) const;
  void close_tiles(std::int64_t rows);
  // Of tiles that go on as lists.
  std::int64_t most_listed_rows() const;
  bool collects() const;
  void collect_tile(const Rows& part, const Tensor& product);
  double* listed(const Rows& part) const;
  void if_listed(const Rows& part, const std::function<void()>& body);
  Code code_of(const Selected& list) const;
  template <class S, class K>
  void pass_elements(K kernel, const Selected& list, const Tensor& numbers, const Tensor& sums, int first,
                     int count);
  void add_lists();
  template <class S>
  void add_thresholded_lists();
  template <class S>
  void add_gated_lists();
  void decode_lists(const Code& code, std::int64_t slot, const Tensor& slopes);
  // Of inference.
  bool writes_tiles() const;
  Tensor centered(Tensor x, const Work& work) const;
  Tensor skipped(Tensor x, const Work& work) const;
  Code select_rows(Tensor inputs, const CallMemory& memory, bool scaled) const;
  void encode_tile(Tensor inputs, Tensor code, const CallMemory& memory, bool scaled) const;
  void output_of(Tensor code, Tensor extra, Tensor output) const;
  void score_output(Tensor target, Tensor output, Tensor losses) const;

  const ModelSpec spec_;
  const SparseCodeSpec code_;
  const bool dense_;  // whether a step works in tiles of rows x latents
  Backend& backend_;
  Prefixes prefixes_;
  Weights w_{};
  std::vector<Parameter> parameters_;
  std::vector<MatrixUpdate> updates_;
  Tensor *encoder_gradient_ = nullptr, *decoder_gradient_ = nullptr;
  Tensor *bias_gradient_ = nullptr, *decoder_bias_gradient_ = nullptr;
  Tensor *since_ = nullptr, *fired_rows_ = nullptr, *bar_ = nullptr, *monitor_ = nullptr;
  Tensor* data_variance_ = nullptr;

  // Scratch, for the reserved number of rows.
  Tensor* scalar_ = nullptr;  // what a pass over scalars alone runs on
  Tensor *sums_ = nullptr, *inputs_ = nullptr, *errors_ = nullptr, *residual_ = nullptr, *extra_ = nullptr;
  Tensor *norms_ = nullptr, *losses_ = nullptr, *last_losses_ = nullptr, *output_sums_ = nullptr;
  Tensor *gate_sums_ = nullptr, *through_ = nullptr, *fired_ = nullptr, *squares_ = nullptr;
  Tensor *pull_ = nullptr, *forward_sums_ = nullptr, *backward_sums_ = nullptr, *vector_sums_ = nullptr;
  Tensor *gain_ = nullptr, *pull_sums_ = nullptr, *element_sums_ = nullptr;
  Tensor *gate_bars_ = nullptr, *passing_ = nullptr;
  Tensor *row_counts_ = nullptr, *row_slopes_ = nullptr, *row_penalty_ = nullptr;
  Selected main_, auxiliary_, near_, opening_;
  Tensor* listed_ = nullptr;  // of each tile 1 if it goes on as a list, else 0
  std::vector<Rows> tiles_;   // of the batch, where some may
  Tile tile_;
  LatentIndex index_;
  Tensor* index_parts_[6] = {};

  StepMemory memory_;
  bool with_gradient_ = false;
  double k_ = 0;  // of this step
  Batch batch_;
  Tensor input_, skipped_;  // of the batch: what the encoder sees, and what it leaves out
};

}  // namespace fastsae
