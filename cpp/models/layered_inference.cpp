// Inference of a list of layers: rows in, rows out, nothing kept.
#include <algorithm>

#include "core/error.h"
#include "models/layered.h"
#include "models/sampling.h"

namespace fastsae {

std::int64_t Layered::widest() const {
  std::int64_t widest = std::max(spec_.n_features, 2 * code_width());
  for (const Stage& stage : stages_) widest = std::max(widest, stage.spec().out.size());
  return widest;
}

std::int64_t Layered::layer_work(std::int64_t rows) const {
  std::int64_t most = 0;
  for (const Stage& stage : stages_) most = std::max(most, stage.layer->work_size(rows));
  return most + places_before(depth(), rows);
}

// Elements of the places of the stages before one; they lie behind the work that all layers share.
std::int64_t Layered::places_before(Index index, std::int64_t rows) const {
  std::int64_t sum = 0;
  for (Index i = 0; i < index; ++i) sum += stage(i).layer->places_size(rows);
  return sum;
}

Context Layered::context_of(Index index, std::int64_t rows, const Work& work) const {
  Context context{backend_, work.layer};
  const Index owner = stage(index).places_stage;
  if (owner == kNone) return context;
  const std::int64_t size = stage(owner).layer->places_size(rows);
  const std::int64_t end = work.layer.size() - places_before(owner, rows);
  context.places = shaped(shaped(work.layer, work.layer.size(), 1).slice_rows(end - size, size), 1, size);
  return context;
}

// The output in the order that its layer makes. It must not be in the first two buffers, which hold what is between.
void Layered::run(Index from, Index to, Tensor in, Tensor out, const Work& work) const {
  for (Index i = from; i < to; ++i) {
    const Stage& stage = this->stage(i);
    const Tensor made = i + 1 == to ? out : buffer_beside(in, stage.spec().out, work);
    const Context context = context_of(i, in.rows, work);
    if (stage.layer->has_weights()) {
      const Kernel kernel = stage.kernels.infer(*stage.layer->bias);
      stage.layer->forward(context, in, made, {&kernel});
      if (softmax_ && i + 1 == depth())
        Softmax::probabilities(backend_, made, shaped(work.losses, in.rows, 1));
    } else {
      stage.layer->forward(context, in, made, {});
    }
    in = made;
  }
}

Tensor Layered::buffer_beside(const Tensor& in, const Shape& shape, const Work& work) const {
  const Tensor& free = in.data == work.rows[0].data ? work.rows[1] : work.rows[0];
  return shaped(free, in.rows, shape.size());
}

// Rows as a caller has them, with one channel after the other, in the order that a stage reads.
Tensor Layered::ordered_for(Index index, Tensor in, const Work& work) const {
  if (!is_channels_last(index)) return in;
  const Shape& shape = stage(index - 1).spec().out;
  const Tensor ordered = buffer_beside(in, shape, work);
  reorder(backend_, in, ordered, shape, true);
  return ordered;
}

void Layered::infer(Index from, Index to, Tensor in, Tensor out, const Work& work) const {
  if (from == to) return backend_.copy(out, in);
  in = ordered_for(from, in, work);
  if (!is_channels_last(to)) return run(from, to, in, out, work);
  const Shape& shape = stage(to - 1).spec().out;
  const Tensor made = shaped(work.rows[2], in.rows, shape.size());
  run(from, to, in, made, work);
  reorder(backend_, made, out, shape, false);
}

void Layered::encode(Tensor x, Tensor code, const Work& work) const { infer(0, code_stage_, x, code, work); }

void Layered::decode(Tensor code, Tensor output, const Work& work) const {
  infer(code_stage_, depth(), code, output, work);
}

void Layered::reconstruct(Tensor x, Tensor output, const Work& work) const {
  infer(0, depth(), x, output, work);
}

void Layered::encode_distribution(Tensor x, Tensor moments, const Work& work) const {
  infer(0, code_stage_ - 1, x, moments, work);
  clamp_moments(backend_, moments);
}

void Layered::score(Tensor x, Tensor target, Tensor output, Tensor losses, const Work& work) const {
  score_from(0, x, target, output, losses, work);
}

void Layered::score_code(Tensor code, Tensor target, Tensor output, Tensor losses, const Work& work) const {
  score_from(code_stage_, code, target, output, losses, work);
}

void Layered::score_from(Index from, Tensor in, Tensor target, Tensor output, Tensor losses,
                         const Work& work) const {
  const Stage& last = stages_.back();
  const Shape& shape = last.spec().out;
  in = ordered_for(from, in, work);
  if (from + 1 < depth()) {
    const Tensor hidden = shaped(work.rows[2], in.rows, last.spec().in.size());
    run(from, depth() - 1, in, hidden, work);
    in = hidden;
  }
  if (is_channels_last(depth())) {
    const Tensor ordered = buffer_beside(in, shape, work);
    reorder(backend_, target, ordered, shape, true);
    target = ordered;
  }
  if (softmax_) {
    const Kernel kernel = last.kernels.infer(*last.layer->bias);
    last.layer->forward({backend_, work.layer}, in, output, {&kernel});
    return Softmax::losses(backend_, output, target, shaped(work.losses, in.rows, 1), losses);
  }
  const Kernel kernel = output_.row_loss(*last.layer->bias, pixels(target, shape));
  if (shape.positions() == 1) {
    last.layer->forward({backend_, work.layer}, in, output, {&kernel, {losses}});
    return;
  }
  const Tensor of_pixels = shaped(work.losses, in.rows * shape.positions(), 1);
  last.layer->forward({backend_, work.layer}, in, output, {&kernel, {of_pixels}});
  backend_.map(shaped(of_pixels, in.rows, shape.positions()), as_kernel(SumRow{}), {losses});
}

}  // namespace fastsae
