#include "core/arena.h"

#include "core/error.h"

namespace fastsae {
namespace {

// Cache lines and vectors are shorter. It is that of a device's allocations: a library that chooses an algorithm by
// alignment chooses the same for rows that are copied here and for rows that are not.
constexpr std::size_t kAlignment = 256;

std::size_t padded_bytes(const Tensor& tensor, DType dtype) {
  const std::size_t bytes = static_cast<std::size_t>(tensor.size()) * size_of(dtype);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::size_t shadow_bytes(const Arena::Named& named) {
  return named.shadowed ? padded_bytes(named.tensor, DType::bf16) : 0;
}

}  // namespace

Tensor& Arena::declare(std::string name, std::int64_t rows, std::int64_t cols, DType dtype, bool shadowed) {
  std::int64_t elements = 0;
  if (__builtin_mul_overflow(rows, cols, &elements) || elements > (std::int64_t{1} << 58)) {
    throw ValueError(text(name, ": a tensor of ", rows, " x ", cols, " is more than can be addressed"));
  }
  tensors_.push_back({std::move(name), Tensor{nullptr, rows, cols, cols, dtype}, shadowed});
  return tensors_.back().tensor;
}

std::size_t Arena::bytes() const {
  std::size_t total = 0;
  for (const Named& named : tensors_) {
    const std::size_t bytes = padded_bytes(named.tensor, named.tensor.dtype) + shadow_bytes(named);
    if (__builtin_add_overflow(total, bytes, &total)) {
      throw ValueError(text(named.name, ": the tensors are together more than can be addressed"));
    }
  }
  return total;
}

void Arena::allocate(const Allocate& allocate) {
  memory_ = allocate(bytes());
  auto* next = static_cast<std::byte*>(memory_.get());
  for (Named& named : tensors_) {
    named.tensor.data = next;
    next += padded_bytes(named.tensor, named.tensor.dtype);
    if (named.shadowed) named.tensor.shadow = next;
    next += shadow_bytes(named);
  }
}

const Tensor* Arena::find(const std::string& name) const {
  for (const Named& named : tensors_) {
    if (named.name == name) return &named.tensor;
  }
  return nullptr;
}

}  // namespace fastsae
