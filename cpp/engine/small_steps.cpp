// Training of models so small that a device takes many steps at once.
#include <algorithm>
#include <memory>
#include <vector>

#include "engine/engine.h"

namespace fastsae {
namespace {

constexpr std::size_t kStagedBytes = std::size_t{16} << 20;  // of rows at once, unless one batch is more
constexpr std::int64_t kScalarsWidth = sizeof(StepScalars) / sizeof(double);

}  // namespace

void Engine::reserve_staged(std::int64_t rows, std::int64_t steps) {
  if (staged_ && staged_->rows >= rows && staged_->steps >= steps) return;
  auto made = std::make_unique<Staged>();
  made->rows = std::max(rows, staged_ ? staged_->rows : 0);
  made->steps = std::max(steps, staged_ ? staged_->steps : 0);
  staged_.reset();
  ones_ = nullptr;
  const Tensor& x = made->arena.declare("x", made->rows, n_features_, dtype_);
  const Tensor& weight = made->arena.declare("weight", 1, made->rows, dtype_);
  const Tensor& scalars = made->arena.declare("scalars", made->steps, kScalarsWidth, DType::f64);
  made->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  made->batch = {x, {}, weight, {}};
  made->scalars = scalars;
  staged_ = std::move(made);
}

std::int64_t Engine::begin_small_steps(const Rows& rows, std::int64_t batch) {
  const std::int64_t size = std::min(batch, rows.count);
  if (!small_ || size > full_batch_rows_ || rows.of.target.data != nullptr) return 0;
  const std::size_t batch_bytes = static_cast<std::size_t>(size * n_features_) * size_of(dtype_);
  const auto staged = static_cast<std::int64_t>(std::max<std::size_t>(1, kStagedBytes / batch_bytes));
  const std::int64_t most = std::min({backend_->small_steps(*small_, size), rows.count / size, staged});
  const auto part = [&](std::int64_t step) {
    Rows one = rows;
    one.first += step * size;
    one.count = size;
    return one;
  };
  std::vector<StepScalars> scalars;
  for (std::int64_t step = 0; step < most; ++step) {
    const double total = part(step).total_weight();
    if (total <= 0) break;  // such a batch is no step
    const std::int64_t number = steps_ + static_cast<std::int64_t>(in_flight_.size()) + step + 1;
    scalars.push_back(scalars_of(total, rho_hat_decay(number), number));
  }
  const auto steps = static_cast<std::int64_t>(scalars.size());
  if (steps == 0) return 0;
  in_flight_.reserve(in_flight_.size() +
                     scalars.size());  // counting steps must not fail once they have begun
  reserve_staged(steps * size, steps);
  const Batch batches = load(rows, 0, steps * size, staged_->batch, true);
  const Tensor on_device = staged_->scalars.slice_rows(0, steps);
  backend_->write(on_device, scalars.data());
  backend_->take_small_steps(*small_, {batches.x, batches.weight, on_device, size, steps});
  for (std::int64_t step = 0; step < steps; ++step) in_flight_.push_back(part(step));
  return steps * size;
}

}  // namespace fastsae
