// The encoder of a TopK autoencoder: weights that stay on a device, and the k largest pre-activations of any rows.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace fastsae {

class TopKEncoder {
 public:
  static constexpr std::int64_t kMostK = 512;

  // weight: [n_latents x n_features]; bias: one row of n_latents, or null.
  TopKEncoder(const RowSource& weight, const RowSource* bias, std::int64_t k, DType dtype,
              std::unique_ptr<Backend> backend);

  // Dense [x.rows x k], in dtype and in i32. Safe from many threads at once.
  void encode(const RowSource& x, RowTarget values, RowTarget indices) const;

  // Memory of the device, for results.
  Memory allocate(std::size_t bytes) const;
  const Backend& backend() const { return *backend_; }
  // Calls body with the device's queue of work while nothing else adds to it, and waits until that is done.
  void with_stream(const std::function<void(void*)>& body) const;

  // "weight", and "bias" where there is one; read() gives them in dtype, dense.
  std::vector<std::string> names() const;
  const Tensor& tensor(const std::string& name) const;
  void read(const std::string& name, void* to) const;

  DType dtype() const { return dtype_; }
  std::int64_t n_features() const { return weight_->cols; }
  std::int64_t n_latents() const { return weight_->rows; }
  std::int64_t k() const { return k_; }

 private:
  // What a block of rows is staged in, for one call at a time.
  struct Staging {
    std::int64_t rows = 0;
    Arena arena;
    Tensor input, values, indices;
  };

  std::unique_ptr<Staging> lease(std::int64_t rows) const;
  void select(const RowSource& rows, const Staging* staging, const Tensor& values,
              const Tensor& indices) const;
  // Of one block, to host memory or to the device's own.
  void select_on_device(const RowSource& rows, const Staging& staging, const Tensor& values,
                        bool values_on_device, const Tensor& indices, bool indices_on_device) const;

  const DType dtype_;
  const std::int64_t k_;
  std::unique_ptr<Backend> backend_;
  Arena parameters_;
  Tensor* weight_;
  Tensor* bias_ = nullptr;
  mutable std::mutex device_mutex_;   // a device works on one thing at a time
  mutable std::mutex staging_mutex_;  // of the free list
  mutable std::vector<std::unique_ptr<Staging>> staging_free_;
};

}  // namespace fastsae
