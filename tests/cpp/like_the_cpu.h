// A backend that leaves everything to the CPU's: tests replace what they are about.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace fastsae {

class LikeTheCpu : public Backend {
 public:
  bool reads_host_memory() const override { return cpu_->reads_host_memory(); }
  Place place() const override { return cpu_->place(); }
  void* stream() const override { return cpu_->stream(); }
  void finish() noexcept override { cpu_->finish(); }
  std::size_t free_memory() const override { return cpu_->free_memory(); }
  FetchRows fetch_rows() const override { return cpu_->fetch_rows(); }
  bool wants_shadows() const override { return cpu_->wants_shadows(); }
  Memory allocate(std::size_t bytes) override { return cpu_->allocate(bytes); }
  void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) override {
    cpu_->product(a, b, out, accumulate, kernel, sums);
  }
  void map(Tensor out, const Kernel& kernel, Sums sums) override { cpu_->map(out, kernel, sums); }
  void map_each(std::span<const Mapped> items) override { cpu_->map_each(items); }
  void encode_select(const Selection& selection) override { cpu_->encode_select(selection); }
  void encode_select_batch(const BatchSelection& selection) override { cpu_->encode_select_batch(selection); }
  void select_dead(const DeadSelection& selection) override { cpu_->select_dead(selection); }
  void decode(const Decoding& decoding) override { cpu_->decode(decoding); }
  void collect(const Collection& collection) override { cpu_->collect(collection); }
  void sum_by_latent(const Code& code, Tensor sums) override { cpu_->sum_by_latent(code, sums); }
  void either(const double* number, const std::function<void()>& yes,
              const std::function<void()>& no) override {
    cpu_->either(number, yes, no);
  }
  void write_code(const Code& code, Tensor rows) override { cpu_->write_code(code, rows); }
  void index_latents(std::span<const CodeGradient> codes, std::int64_t slots, const LatentIndex& index,
                     Tensor fired) override {
    cpu_->index_latents(codes, slots, index, fired);
  }
  void measure_latents(const LatentRows& rows, Tensor squares, Tensor sums) override {
    cpu_->measure_latents(rows, squares, sums);
  }
  void write_latents(const LatentRows& rows, Tensor encoder, Tensor decoder) override {
    cpu_->write_latents(rows, encoder, decoder);
  }
  void update_latents(const LatentRows& rows, const LatentUpdate& update) override {
    cpu_->update_latents(rows, update);
  }
  void row_norms(Tensor of, Tensor norms) override { cpu_->row_norms(of, norms); }
  void unfold(const Windows& windows, Tensor images, Tensor columns) override {
    cpu_->unfold(windows, images, columns);
  }
  void fold(const Windows& windows, Tensor columns, Tensor images, const Kernel* kernel, Sums sums) override {
    cpu_->fold(windows, columns, images, kernel, sums);
  }
  void copy(Tensor to, Tensor from) override { cpu_->copy(to, from); }
  void fill(Tensor to, double value) override { cpu_->fill(to, value); }
  void gather(const RowSource& source, const std::int64_t* order, Tensor out) override {
    cpu_->gather(source, order, out);
  }
  std::int64_t first_row_outside(const RowSource& rows, double low, double high) override {
    return cpu_->first_row_outside(rows, low, high);
  }
  void read(const Tensor& from, void* to) override { cpu_->read(from, to); }
  void write(const Tensor& to, const void* from) override { cpu_->write(to, from); }
  void add_totals(std::span<const Total> totals) override { cpu_->add_totals(totals); }
  void step(std::int64_t key, const std::function<void()>& body) override { cpu_->step(key, body); }
  std::int64_t steps_in_flight() const override { return cpu_->steps_in_flight(); }
  void poll() override {}

 private:
  std::unique_ptr<Backend> cpu_ = make_backend("cpu", Precision::full, {});
};

}  // namespace fastsae
