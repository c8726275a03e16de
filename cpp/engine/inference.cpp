// Inference: blocks of rows through the model, side by side where the device allows it.
#include <algorithm>
#include <optional>
#include <utility>

#include "engine/scratch.h"

namespace fastsae {
namespace {

constexpr std::int64_t kInferenceRows = 1024;  // of one block

}  // namespace

std::unique_ptr<Engine::Inference> Engine::lease(std::int64_t rows) const {
  std::unique_ptr<Inference> leased;
  {
    const std::lock_guard lock(inference_mutex_);
    if (!inference_free_.empty()) {
      leased = std::move(inference_free_.back());
      inference_free_.pop_back();
    }
  }
  if (leased && leased->rows >= rows) return leased;
  leased = std::make_unique<Inference>();
  leased->rows = rows;
  const auto declare = [&](const char* name, std::int64_t cols, DType dtype) -> Tensor& {
    return leased->arena.declare(name, rows, cols, dtype, backend_->wants_shadows() && dtype == dtype_);
  };
  Tensor* made[] = {
      &declare("work", model_->widest(), dtype_),  &declare("work", model_->widest(), dtype_),
      &declare("work", model_->widest(), dtype_),  &declare("code", model_->widest(), dtype_),
      &declare("input", model_->widest(), dtype_), &declare("output", model_->widest(), DType::f64)};
  leased->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  Tensor* const places[] = {&leased->work[0], &leased->work[1], &leased->work[2],
                            &leased->code,    &leased->input,   &leased->output};
  for (int i = 0; i < 6; ++i) *places[i] = *made[i];
  return leased;
}

template <class Body>
void Engine::infer(const RowSource& in, const Tensor& result, bool on_device, const Body& body) const {
  std::unique_ptr<Inference> scratch;
  {
    // Where steps are recorded, nothing may allocate beside them.
    std::unique_lock lock(model_mutex_, std::defer_lock);
    if (!backend_->reads_host_memory()) lock.lock();
    scratch = lease(std::min(kInferenceRows, in.rows));
  }
  std::optional<Finish> finish;
  if (!backend_->reads_host_memory()) finish.emplace(*backend_, &model_mutex_);
  for (std::int64_t first = 0; first < in.rows; first += kInferenceRows) {
    const std::int64_t count = std::min(kInferenceRows, in.rows - first);
    const Tensor target = result.slice_rows(first, count);
    const RowSource rows = rows_from(in, first, count);
    if (backend_->reads_host_memory()) {
      const std::shared_lock lock(model_mutex_);
      body(input_block(rows, *scratch), target, *scratch);
    } else {
      const std::unique_lock lock(model_mutex_);  // the device works on one thing at a time
      const Tensor out = on_device ? target : shaped(scratch->output, count, target.cols, target.dtype);
      body(input_block(rows, *scratch), out, *scratch);
      if (!on_device) backend_->read(out, target.data);
    }
    backend_->poll();
  }
  const std::lock_guard lock(inference_mutex_);
  inference_free_.push_back(std::move(scratch));
}

Tensor Engine::input_block(const RowSource& rows, const Inference& scratch) const {
  if (usable_in_place(*backend_, rows, dtype_)) return in_place(rows, 0, rows.rows);
  const Tensor staged = shaped(scratch.input, rows.rows, rows.cols);
  backend_->gather(rows, nullptr, staged);
  return staged;
}

void Engine::encode(const RowSource& x, RowTarget code) const {
  infer(x, {code.data, x.rows, code_width(), code_width(), dtype_}, code.on_device,
        [&](const Tensor& in, const Tensor& out, Inference& scratch) {
          model_->encode(in, out, scratch.work);
        });
}

void Engine::decode(const RowSource& code, RowTarget x) const {
  infer(code, {x.data, code.rows, n_features_, n_features_, dtype_}, x.on_device,
        [&](const Tensor& in, const Tensor& out, Inference& scratch) {
          model_->decode(in, out, scratch.work);
        });
}

void Engine::reconstruct(const RowSource& x, RowTarget output) const {
  infer(x, {output.data, x.rows, n_features_, n_features_, dtype_}, output.on_device,
        [&](const Tensor& in, const Tensor& out, Inference& scratch) {
          const Tensor code = shaped(scratch.code, in.rows, code_width());
          model_->encode(in, code, scratch.work);
          model_->decode(code, out, scratch.work);
        });
}

void Engine::score(const RowSource& x, double* losses) const {
  infer(x, {losses, x.rows, 1, 1, DType::f64}, false,
        [&](const Tensor& in, const Tensor& out, Inference& scratch) {
          model_->score(in, shaped(scratch.code, in.rows, n_features_), out, scratch.work);
        });
  for (std::int64_t i = 0; i < x.rows; ++i) losses[i] *= model_->loss_factor();
}

}  // namespace fastsae
