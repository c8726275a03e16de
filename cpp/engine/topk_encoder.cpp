#include "engine/topk_encoder.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "engine/scratch.h"

namespace fastsae {
namespace {

constexpr std::int64_t kStagedRows = 4096;

}  // namespace

TopKEncoder::TopKEncoder(const RowSource& weight, const RowSource* bias, std::int64_t k, DType dtype,
                         std::unique_ptr<Backend> backend)
    : dtype_(dtype), k_(k), backend_(std::move(backend)) {
  FS_REQUIRE(weight.rows >= 1 && weight.cols >= 1,
             "weight: expected at least one latent and one feature, got ", weight.rows, " x ", weight.cols);
  FS_REQUIRE(weight.rows <= INT32_MAX, "weight: expected at most ", INT32_MAX, " latents, got ", weight.rows);
  const std::int64_t most = std::min(kMostK, weight.rows);
  FS_REQUIRE(k >= 1 && k <= most, "k: expected an integer in [1, ", most, "] for ", weight.rows,
             " latents, got ", k);
  weight_ = &parameters_.declare("weight", weight.rows, weight.cols, dtype, backend_->wants_shadows());
  if (bias != nullptr) {
    FS_REQUIRE(bias->rows == 1 && bias->cols == weight.rows, "bias: expected ", weight.rows, " numbers, got ",
               bias->rows * bias->cols);
    bias_ = &parameters_.declare("bias", 1, weight.rows, dtype);
  }
  parameters_.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  backend_->gather(weight, nullptr, *weight_);
  if (bias != nullptr) backend_->gather(*bias, nullptr, *bias_);
}

std::vector<std::string> TopKEncoder::names() const {
  std::vector<std::string> names;
  for (const Arena::Named& named : parameters_.tensors()) names.push_back(named.name);
  return names;
}

const Tensor& TopKEncoder::tensor(const std::string& name) const {
  const Tensor* found = parameters_.find(name);
  FS_REQUIRE(found != nullptr, name, ": expected 'weight' or 'bias'");
  return *found;
}

void TopKEncoder::read(const std::string& name, void* to) const {
  const std::lock_guard lock(device_mutex_);
  backend_->read(tensor(name), to);
}

std::unique_ptr<TopKEncoder::Staging> TopKEncoder::lease(std::int64_t rows) const {
  std::unique_ptr<Staging> leased;
  {
    const std::lock_guard lock(staging_mutex_);
    if (!staging_free_.empty()) {
      leased = std::move(staging_free_.back());
      staging_free_.pop_back();
    }
  }
  if (leased && leased->rows >= rows) return leased;
  leased = std::make_unique<Staging>();
  leased->rows = rows;
  const std::int64_t results =
      backend_->reads_host_memory() ? 0 : rows;  // else the caller's memory takes them
  Arena& arena = leased->arena;
  Tensor* const made[] = {&arena.declare("input", rows, n_features(), dtype_, backend_->wants_shadows()),
                          &arena.declare("values", results, k_, dtype_),
                          &arena.declare("indices", results, k_, DType::i32)};
  arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  leased->input = *made[0];
  leased->values = *made[1];
  leased->indices = *made[2];
  return leased;
}

void TopKEncoder::select(const RowSource& rows, const Staging* staging, const Tensor& values,
                         const Tensor& indices) const {
  Selection selection{{}, *weight_, {}, values, indices};
  if (bias_ != nullptr) selection.bias = *bias_;
  if (usable_in_place(*backend_, rows, dtype_)) {
    selection.x = in_place(rows, 0, rows.rows);
  } else {
    selection.x = staging->input.slice_rows(0, rows.rows);
    backend_->gather(rows, nullptr, selection.x);
  }
  backend_->encode_select(selection);
}

Memory TopKEncoder::allocate(std::size_t bytes) const {
  const std::lock_guard lock(device_mutex_);
  return backend_->allocate(bytes);
}

void TopKEncoder::with_stream(const std::function<void(void*)>& body) const {
  const std::lock_guard lock(device_mutex_);
  body(backend_->stream());
  backend_->finish();
}

void TopKEncoder::select_on_device(const RowSource& rows, const Staging& staging, const Tensor& values,
                                   bool values_on_device, const Tensor& indices,
                                   bool indices_on_device) const {
  const std::lock_guard lock(device_mutex_);
  const Finish finish{*backend_};
  const Tensor made_values = values_on_device ? values : staging.values.slice_rows(0, rows.rows);
  const Tensor made_indices = indices_on_device ? indices : staging.indices.slice_rows(0, rows.rows);
  select(rows, &staging, made_values, made_indices);
  if (!values_on_device) backend_->read(made_values, values.data);
  if (!indices_on_device) backend_->read(made_indices, indices.data);
}

void TopKEncoder::encode(const RowSource& x, RowTarget values, RowTarget indices) const {
  const Tensor all_values{values.data, x.rows, k_, k_, dtype_};
  const Tensor all_indices{indices.data, x.rows, k_, k_, DType::i32};
  const bool on_host = backend_->reads_host_memory();
  std::int64_t block = x.rows;
  std::unique_ptr<Staging> staging;
  if (!on_host || !usable_in_place(*backend_, x, dtype_)) {
    block = std::min(kStagedRows, x.rows);
    staging = lease(block);
  }
  for (std::int64_t first = 0; first < x.rows; first += block) {
    const std::int64_t count = std::min(block, x.rows - first);
    const RowSource rows = rows_from(x, first, count);
    const Tensor to_values = all_values.slice_rows(first, count),
                 to_indices = all_indices.slice_rows(first, count);
    if (on_host)
      select(rows, staging.get(), to_values, to_indices);
    else
      select_on_device(rows, *staging, to_values, values.on_device, to_indices, indices.on_device);
    backend_->poll();
  }
  if (!staging) return;
  const std::lock_guard lock(staging_mutex_);
  staging_free_.push_back(std::move(staging));
}

}  // namespace fastsae
