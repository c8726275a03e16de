// Inference: blocks of rows through the model, side by side where the device allows it.
#include <algorithm>
#include <optional>
#include <utility>

#include "engine/scratch.h"
#include "kernels/list.h"

namespace fastsae {
namespace {

constexpr std::int64_t kInferenceRows = 1024;  // of one block
constexpr std::int64_t kInferenceElements = std::int64_t{1}
                                            << 24;  // of one of its buffers, unless a row has more

std::int64_t rows_at_once(std::int64_t cols) {
  return std::clamp<std::int64_t>(kInferenceElements / cols, 1, kInferenceRows);
}

}  // namespace

std::unique_ptr<Engine::Inference> Engine::lease(std::int64_t rows, std::int64_t cols) const {
  std::unique_ptr<Inference> leased;
  {
    const std::lock_guard lock(inference_mutex_);
    if (!inference_free_.empty()) {
      leased = std::move(inference_free_.back());
      inference_free_.pop_back();
    }
  }
  if (leased && leased->rows >= rows && leased->cols >= cols) return leased;
  leased = std::make_unique<Inference>();
  leased->rows = rows;
  leased->cols = cols;
  const std::int64_t widest = model_->widest();
  std::vector<std::pair<Tensor*, const Tensor*>> made;
  const auto declare = [&](Tensor& place, std::int64_t count, std::int64_t cols, DType dtype) {
    const bool shadowed = backend_->wants_shadows() && dtype == dtype_;
    made.emplace_back(&place, &leased->arena.declare("inference", count, cols, dtype, shadowed));
  };
  Model::Work& work = leased->work;
  for (Tensor* tensor : {&work.rows[0], &work.rows[1], &work.rows[2], &leased->code})
    declare(*tensor, rows, widest, dtype_);
  declare(leased->input, rows, cols, dtype_);
  declare(leased->target, rows, n_outputs_, dtype_);
  declare(leased->output, rows, backend_->reads_host_memory() ? 1 : cols, DType::f64);
  declare(work.losses, rows, model_->output_positions(), DType::f64);
  declare(work.layer, 1, model_->layer_work(rows), dtype_);
  leased->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  for (const auto& [place, tensor] : made) *place = *tensor;
  return leased;
}

template <class Body>
void Engine::infer(const RowSource& in, const Tensor& result, bool on_device, const Body& body) const {
  // Results on the host go where they belong; whatever is staged needs room.
  const std::int64_t staged = backend_->reads_host_memory() ? in.cols : std::max(in.cols, result.cols);
  const std::int64_t cols = std::max(model_->widest(), staged), at_once = rows_at_once(cols);
  std::unique_ptr<Inference> scratch;
  {
    // Where steps are recorded, nothing may allocate beside them.
    std::unique_lock lock(model_mutex_, std::defer_lock);
    if (!backend_->reads_host_memory()) lock.lock();
    scratch = lease(std::min(at_once, in.rows), cols);
  }
  std::optional<Finish> finish;
  if (!backend_->reads_host_memory()) finish.emplace(*backend_, &model_mutex_);
  for (std::int64_t first = 0; first < in.rows; first += at_once) {
    const std::int64_t count = std::min(at_once, in.rows - first);
    const Tensor target = result.slice_rows(first, count);
    const RowSource rows = rows_from(in, first, count);
    if (backend_->reads_host_memory()) {
      const std::shared_lock lock(model_mutex_);
      body(input_block(rows, scratch->input), target, *scratch, first);
    } else {
      const std::unique_lock lock(model_mutex_);  // the device works on one thing at a time
      const Tensor out = on_device ? target : shaped(scratch->output, count, target.cols, target.dtype);
      body(input_block(rows, scratch->input), out, *scratch, first);
      if (!on_device) backend_->read(out, target.data);
    }
    backend_->poll();
  }
  const std::lock_guard lock(inference_mutex_);
  inference_free_.push_back(std::move(scratch));
}

Tensor Engine::input_block(const RowSource& rows, const Tensor& staging) const {
  if (takes_in_place(rows)) return in_place(rows, 0, rows.rows);
  const Tensor staged = shaped(staging, rows.rows, rows.cols);
  backend_->gather(rows, nullptr, staged);
  return staged;
}

void Engine::encode(const RowSource& x, RowTarget code) const {
  infer(x, {code.data, x.rows, code_width(), code_width(), dtype_}, code.on_device,
        [&](const Tensor& in, const Tensor& out, Inference& scratch, std::int64_t) {
          model_->encode(in, out, scratch.work);
        });
}

// Appends what is not 0 of blocks of a code.
class Engine::Elements {
 public:
  Elements(Backend& backend, DType dtype, SparseRows& to) : backend_(backend), dtype_(dtype), to_(to) {}

  void add(const Code& code) {
    const std::int32_t* starts = code.starts.exists() ? on_host<std::int32_t>(code.starts, starts_) : nullptr;
    const auto begin = [&](std::int64_t row) { return starts == nullptr ? row * code.per_row : starts[row]; };
    const std::int64_t count = begin(code.rows);
    const std::int32_t* latents = on_host<std::int32_t>(shaped(code.latents, 1, count), latents_);
    with_scalar(dtype_, [&](auto s) {
      using S = decltype(s);
      const S* values = on_host<S>(shaped(code.values, 1, count), values_);
      add<S>(code.rows, count, [&](std::int64_t row, const auto& put) {
        for (std::int64_t i = begin(row); i < begin(row + 1); ++i) put(latents[i], values[i]);
      });
    });
  }

  void add(const Tensor& code) {
    with_scalar(dtype_, [&](auto s) {
      using S = decltype(s);
      const S* lines = on_host<S>(code, values_);
      const std::int64_t stride = backend_.reads_host_memory() ? code.stride : code.cols;
      const auto is_there = [](S value) { return value != S(0); };
      std::int64_t count = 0;
      for (std::int64_t row = 0; row < code.rows; ++row)
        count += std::count_if(lines + row * stride, lines + row * stride + code.cols, is_there);
      add<S>(code.rows, count, [&](std::int64_t row, const auto& put) {
        for (std::int64_t col = 0; col < code.cols; ++col) put(col, lines[row * stride + col]);
      });
    });
  }

 private:
  template <class T>
  const T* on_host(const Tensor& from, std::vector<std::byte>& room) {
    if (backend_.reads_host_memory()) return from.as<T>();
    room.resize(static_cast<std::size_t>(from.size()) * sizeof(T));
    backend_.read(from, room.data());
    return reinterpret_cast<const T*>(room.data());
  }

  // `walk(row, put)` puts the elements of a row, `most` of all rows together that are not 0.
  template <class S, class Walk>
  void add(std::int64_t rows, std::int64_t most, const Walk& walk) {
    std::size_t at = to_.columns.size();
    to_.columns.resize(at + static_cast<std::size_t>(most));
    to_.values.resize((at + static_cast<std::size_t>(most)) * sizeof(S));
    S* values = reinterpret_cast<S*>(to_.values.data());
    for (std::int64_t row = 0; row < rows; ++row) {
      walk(row, [&](std::int64_t column, S value) {
        if (value == S(0)) return;
        to_.columns[at] = static_cast<std::int32_t>(column);
        values[at++] = value;
      });
      to_.starts.push_back(static_cast<std::int64_t>(at));
    }
    to_.columns.resize(at);
    to_.values.resize(at * sizeof(S));
  }

  Backend& backend_;
  const DType dtype_;
  SparseRows& to_;
  std::vector<std::byte> starts_, latents_, values_;  // of a block that is elsewhere
};

Engine::SparseRows Engine::encode_sparse(const RowSource& x) const {
  SparseRows made{{0}, {}, {}};
  Elements elements(*backend_, dtype_, made);
  infer(x, {nullptr, x.rows, 0, 0, dtype_}, true,
        [&](const Tensor& in, const Tensor&, Inference& scratch, std::int64_t) {
          model_->encode_blocks(in, scratch.code, scratch.work, [&](const Model::CodeBlock& block) {
            std::visit([&](const auto& part) { elements.add(part); }, block);
          });
        });
  return made;
}

void Engine::encode_distribution(const RowSource& x, RowTarget moments) const {
  infer(x, {moments.data, x.rows, 2 * code_width(), 2 * code_width(), dtype_}, moments.on_device,
        [&](const Tensor& in, const Tensor& out, Inference& scratch, std::int64_t) {
          model_->encode_distribution(in, out, scratch.work);
        });
}

void Engine::decode(const RowSource& code, RowTarget x) const {
  infer(code, {x.data, code.rows, n_outputs_, n_outputs_, dtype_}, x.on_device,
        [&](const Tensor& in, const Tensor& out, Inference& scratch, std::int64_t) {
          model_->decode(in, out, scratch.work);
        });
}

void Engine::reconstruct(const RowSource& x, RowTarget output) const {
  infer(x, {output.data, x.rows, n_outputs_, n_outputs_, dtype_}, output.on_device,
        [&](const Tensor& in, const Tensor& out, Inference& scratch, std::int64_t) {
          model_->reconstruct(in, out, scratch.work);
        });
}

template <class Score>
void Engine::score_rows(const RowSource& in, const RowSource& target, double* losses,
                        const Score& score) const {
  infer(in, {losses, in.rows, 1, 1, DType::f64}, false,
        [&](const Tensor& rows, const Tensor& out, Inference& scratch, std::int64_t first) {
          const bool same = target.data == in.data && target.cols == in.cols;
          const Tensor goal = same ? rows : input_block(rows_from(target, first, rows.rows), scratch.target);
          score(rows, goal, shaped(scratch.code, rows.rows, n_outputs_), out, scratch.work);
        });
  for (std::int64_t i = 0; i < in.rows; ++i) losses[i] *= model_->loss_factor();
}

void Engine::score(const RowSource& x, const RowSource& target, double* losses) const {
  score_rows(x, target, losses,
             [this](const Tensor& rows, const Tensor& goal, const Tensor& output, const Tensor& out,
                    const Model::Work& work) { model_->score(rows, goal, output, out, work); });
}

void Engine::score_code(const RowSource& code, const RowSource& target, double* losses) const {
  score_rows(code, target, losses,
             [this](const Tensor& rows, const Tensor& goal, const Tensor& output, const Tensor& out,
                    const Model::Work& work) { model_->score_code(rows, goal, output, out, work); });
}

}  // namespace fastsae
