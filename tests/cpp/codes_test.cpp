// What a device does with sparse codes, played by one thread, against the CPU, where trainings do not come: ties, lists that
// are cut in pieces, more candidates than there is room for.
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "kernels/list.h"
#include "serial_device.h"
#include "testing.h"

namespace {

using namespace fastsae;

// A matrix with its memory.
template <class S>
struct Matrix {
  Matrix(std::int64_t r, std::int64_t c, S value = S(0))
      : rows(r), cols(c), values(static_cast<std::size_t>(r * c), value) {}
  // Small whole numbers: every product of such matrices is exact, and has many equal elements.
  static Matrix whole(std::int64_t r, std::int64_t c, std::uint32_t seed, int most = 2) {
    Matrix made(r, c);
    Numbers source(seed);
    for (S& value : made.values) value = static_cast<S>(std::floor(source.between(-most, most + 1)));
    return made;
  }
  static Matrix of_numbers(std::int64_t r, std::int64_t c, std::uint32_t seed) {
    Matrix made(r, c);
    made.values = numbers<S>(r * c, seed, -1);
    return made;
  }
  Tensor tensor() {
    const DType type = std::is_same_v<S, std::int32_t> ? DType::i32 : dtype_of<S>;
    return {values.data(), rows, cols, cols, type};
  }
  bool same(const Matrix& other) const {
    return std::memcmp(values.data(), other.values.data(), values.size() * sizeof(S)) == 0;
  }
  std::int64_t rows, cols;
  std::vector<S> values;
};
using Places = Matrix<std::int32_t>;

bool close(const Matrix<double>& a, const Matrix<double>& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    if (!(std::fabs(a.values[i] - b.values[i]) <= 1e-11 * (1 + std::fabs(b.values[i])))) return false;
  }
  return true;
}

struct Devices {
  std::unique_ptr<Backend> serial = cuda::serial_device(), cpu = make_backend("cpu", Precision::full, {});
};

// ---- selection

template <class S>
struct Scores {
  Matrix<S> x, weight, bias, scale;
};

template <class S>
void selects_batch(Devices& devices, Scores<S>& of, std::int64_t count, bool scaled,
                   const std::string& name) {
  const std::int64_t rows = of.x.rows;
  std::vector<Matrix<S>> values(2, Matrix<S>(1, count + 1, S(-7)));
  std::vector<Places> columns(2, Places(1, count + 1, -7)), starts(2, Places(1, rows + 1, -7));
  double smallest[2] = {-7, -7};
  for (const int which : {0, 1}) {
    Backend& backend = which == 0 ? *devices.serial : *devices.cpu;
    Tensor kept_columns = columns[which].tensor(), kept_values = values[which].tensor();
    kept_columns.cols = kept_values.cols = count;
    backend.encode_select_batch({of.x.tensor(), of.weight.tensor(), of.bias.tensor(),
                                 scaled ? of.scale.tensor() : Tensor{}, count, starts[which].tensor(),
                                 kept_columns, kept_values, &smallest[which]});
  }
  check(starts[0].same(starts[1]), text(name, ", ", count, ": starts, ", starts[0].values[rows],
                                        " kept, expected ", starts[1].values[rows]));
  check(columns[0].same(columns[1]), text(name, ", ", count, ": columns"));
  check(values[0].same(values[1]), text(name, ", ", count, ": values"));
  check(std::memcmp(&smallest[0], &smallest[1], sizeof(double)) == 0,
        text(name, ", ", count, ": smallest ", smallest[0], ", expected ", smallest[1]));
}

template <class S>
void selects_dead(Devices& devices, Scores<S>& of, std::int64_t k, bool scaled, double limit,
                  const std::string& name) {
  const std::int64_t rows = of.x.rows, latents = of.weight.rows;
  Matrix<double> since(1, latents);
  for (std::int64_t i = 0; i < latents; ++i) since.values[i] = static_cast<double>(i * 37 % 100);
  std::vector<Matrix<S>> values(2, Matrix<S>(1, rows * k, S(-7)));
  std::vector<Places> columns(2, Places(1, rows * k, -7)), starts(2, Places(1, rows + 1, -7));
  double dead[2] = {-7, -7};
  for (const int which : {0, 1}) {
    Backend& backend = which == 0 ? *devices.serial : *devices.cpu;
    const Code code{rows, starts[which].tensor(), 0, columns[which].tensor(), values[which].tensor()};
    backend.select_dead({of.x.tensor(), of.weight.tensor(), of.bias.tensor(),
                         scaled ? of.scale.tensor() : Tensor{}, since.tensor(), limit, k, code,
                         &dead[which]});
  }
  check(dead[0] == dead[1] && starts[0].same(starts[1]) && columns[0].same(columns[1]) &&
            values[0].same(values[1]),
        text(name, ": the best ", k, " of ", dead[1], " dead latents"));
}

template <class S>
void selections(Devices& devices) {
  const auto whole = [](std::int64_t rows, std::int64_t cols, std::uint32_t seed, int most = 2) {
    return Matrix<S>::whole(rows, cols, seed, most);
  };
  const std::string type = sizeof(S) == 4 ? "f32 " : "f64 ";
  // Several tiles of rows and of columns.
  Scores<S> ties{whole(300, 2, 1, 2), whole(2500, 2, 2, 2), whole(1, 2500, 3, 1), whole(1, 2500, 4, 3)};
  for (const std::int64_t count : {0, 1, 7, 1000, 70000}) {
    for (const bool scaled : {false, true}) selects_batch(devices, ties, count, scaled, type + "ties");
  }
  Scores<S> small{whole(5, 3, 5), whole(6, 3, 6), whole(1, 6, 7), whole(1, 6, 8)};
  for (const std::int64_t count : {1, 12, 30}) selects_batch(devices, small, count, false, type + "few");
  Scores<S> rising{Matrix<S>(300, 1), Matrix<S>(1500, 1), Matrix<S>(1, 1500), Matrix<S>(1, 1500, S(1))};
  for (std::int64_t i = 0; i < 300; ++i) rising.x.values[i] = static_cast<S>(1 + i);
  for (std::int64_t i = 0; i < 1500; ++i) rising.weight.values[i] = static_cast<S>(1 + i);
  for (const std::int64_t count : {3, 4000}) selects_batch(devices, rising, count, false, type + "rising");
  Scores<S> equal{Matrix<S>(300, 1, S(1)), Matrix<S>(1500, 1, S(1)), Matrix<S>(1, 1500), Matrix<S>(1, 1500)};
  for (const std::int64_t count : {3, 4000}) selects_batch(devices, equal, count, false, type + "all equal");
  Scores<S> none{Matrix<S>(20, 1, S(-1)), Matrix<S>(50, 1, S(1)), Matrix<S>(1, 50), Matrix<S>(1, 50)};
  selects_batch(devices, none, 9, false, type + "none positive");
  Scores<S> lost{whole(20, 2, 9), whole(50, 2, 10), whole(1, 50, 11), whole(1, 50, 12)};
  lost.x.values[7] = std::numeric_limits<S>::quiet_NaN();
  lost.weight.values[31] = std::numeric_limits<S>::infinity();
  for (const std::int64_t count : {9, 400}) selects_batch(devices, lost, count, false, type + "NaN");

  for (const bool scaled : {false, true}) {
    for (const std::int64_t k : {1, 13, 600}) selects_dead(devices, ties, k, scaled, 49.5, type + "ties");
    selects_dead(devices, ties, 4, scaled, 98, type + "few");
    selects_dead(devices, ties, 4, scaled, 100, type + "none");
    selects_dead(devices, ties, 2500, scaled, -1, type + "all");
  }
}

// ---- latents

// Latent 0 is in each row; a row's latents ascend.
Code a_code(std::int64_t rows, std::int64_t latents, std::int64_t k, Places& places, Matrix<double>& values,
            std::uint32_t seed) {
  Numbers source(seed);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t apart = latents / k;
      places.values[row * k + i] = static_cast<std::int32_t>(
          i == 0 ? 0 : i * apart + static_cast<std::int64_t>(source.between(0, 0.999) * apart));
      const double value = source.between(-1, 1);
      values.values[row * k + i] = value < -0.7 ? 0 : value;
    }
  }
  return {rows, {}, k, places.tensor(), values.tensor()};
}

void latents_with_long_lists(Devices& devices) {
  constexpr std::int64_t rows = 1500, latents = 45, features = 7, outputs = 5, slots = 3, k[2] = {4, 2};
  constexpr std::int64_t capacity = rows * (k[0] + k[1]), pieces = 2 * capacity / LatentIndex::kSegment + 1;
  std::vector<CodeGradient> codes;
  std::vector<Places> places;
  std::vector<Matrix<double>> values, slopes;
  for (const int i : {0, 1}) {
    places.emplace_back(1, rows * k[i]);
    values.emplace_back(1, rows * k[i]);
    slopes.push_back(Matrix<double>::of_numbers(1, rows * k[i], 20 + i));
  }
  for (const int i : {0, 1}) {
    CodeGradient code{};
    code.code = a_code(rows, latents, k[i], places[i], values[i], 30 + i);
    code.slopes = slopes[i].tensor();
    code.prefixes.count = i == 0 ? 2 : 1;
    code.prefixes.ends[0] = i == 0 ? 20 : latents;
    code.prefixes.ends[1] = latents;
    code.first_slot = i == 0 ? 0 : 2;
    code.keep_zeros = i == 1;
    codes.push_back(code);
  }
  auto inputs = Matrix<double>::of_numbers(rows, features, 40),
       errors = Matrix<double>::of_numbers(rows * slots, outputs, 41),
       encoder = Matrix<double>::of_numbers(latents, features, 42),
       decoder = Matrix<double>::of_numbers(latents, outputs, 43);
  std::vector<Places> begins(2, Places(1, latents + 1)), slot(2, Places(1, capacity)),
      segments(2, Places(pieces, 2));
  std::vector<Matrix<double>> value(2, Matrix<double>(1, capacity)),
      slope = value, partials(2, Matrix<double>(pieces, outputs + features)),
      fired(2, Matrix<double>(1, latents)), squares = fired, sums = fired,
      encoder_gradient(2, Matrix<double>(latents, features)),
      decoder_gradient(2, Matrix<double>(latents, outputs));
  for (const int which : {0, 1}) {
    Backend& backend = which == 0 ? *devices.serial : *devices.cpu;
    LatentRows all{};
    all.index = {begins[which].tensor(), slot[which].tensor(),     value[which].tensor(),
                 slope[which].tensor(),  segments[which].tensor(), partials[which].tensor()};
    all.slots = slots;
    all.inputs = inputs.tensor(), all.errors = errors.tensor();
    all.encoder = encoder.tensor(), all.decoder = decoder.tensor();
    all.project = true;
    backend.index_latents(codes, slots, all.index, fired[which].tensor());
    backend.measure_latents(all, squares[which].tensor(), sums[which].tensor());
    backend.write_latents(all, encoder_gradient[which].tensor(), decoder_gradient[which].tensor());
  }
  const std::int32_t longest = begins[0].values[1];
  check(longest > 4 * LatentIndex::kSegment, text("a list of ", longest, " is cut"));
  check(begins[0].same(begins[1]) && fired[0].same(fired[1]), "index: where latents begin");
  check(slot[0].same(slot[1]) && value[0].same(value[1]) && slope[0].same(slope[1]), "index: elements");
  for (std::size_t i = 0; i < segments[1].values.size() && segments[1].values[i] >= 0; i += 2)
    check(segments[0].values[i] == segments[1].values[i] &&
              segments[0].values[i + 1] == segments[1].values[i + 1],
          "index: pieces");
  check(close(squares[0], squares[1]) && close(sums[0], sums[1]), "latents: measures");
  check(close(encoder_gradient[0], encoder_gradient[1]) && close(decoder_gradient[0], decoder_gradient[1]),
        "latents: gradients");
}

// Rows of several blocks, and of more columns than one draw is for: the same codes and scales after some steps.
void updates_of_moments_in_few_bits(Devices& devices, DType kept, int optimizer) {
  constexpr std::int64_t latents = 9, features = 1300, outputs = 300, steps = 4;
  const std::string name = text(kept == DType::u8 ? "8 bits" : "bf16", ", optimizer ", optimizer);
  const auto blocks = [](std::int64_t cols) { return (cols + 255) / 256; };
  struct Side {
    Matrix<double> encoder = Matrix<double>::of_numbers(latents, features, 1),
                   decoder = Matrix<double>::of_numbers(latents, outputs, 2);
    std::vector<std::vector<std::uint16_t>> moments;
    std::vector<Matrix<double>> scales;
  };
  Side sides[2];
  auto encoder_gradient = Matrix<double>::of_numbers(latents, features, 3),
       decoder_gradient = Matrix<double>::of_numbers(latents, outputs, 4);
  for (double& g : encoder_gradient.values) g = g * g * g * g * g;  // over many decades
  for (std::int64_t col = 0; col < 256; ++col) encoder_gradient.values[col] = 0;
  StepScalars scalars{};
  scalars.learning_rate = scalars.adam_rate = 0.01;
  scalars.root_correction = 2;
  scalars.seed = 77;
  StepLog log{};
  log.gradient_scale = 0.5;
  for (const int which : {0, 1}) {
    Backend& backend = which == 0 ? *devices.serial : *devices.cpu;
    Side& side = sides[which];
    const auto update_of = [&](std::int64_t cols) {
      MatrixUpdate update{optimizer, {0.9, 0.9, 0.99, 1e-8, 0}, {}, {}, {}, {}};
      for (Tensor* moment : {&update.first, &update.second}) {
        side.moments.emplace_back(static_cast<std::size_t>(latents * cols));
        *moment = {side.moments.back().data(), latents, cols, cols, kept};
      }
      for (Tensor* scale : {&update.first_scale, &update.second_scale}) {
        side.scales.emplace_back(latents, blocks(cols));
        *scale = side.scales.back().tensor();
      }
      return update;
    };
    LatentRows all{};
    all.encoder_gradient = encoder_gradient.tensor(), all.decoder_gradient = decoder_gradient.tensor();
    all.encoder = side.encoder.tensor(), all.decoder = side.decoder.tensor();
    const LatentUpdate update{update_of(features), update_of(outputs), true, &scalars, &log};
    for (std::int64_t step = 1; step <= steps; ++step) {
      scalars.step = static_cast<double>(step);
      backend.update_latents(all, update);
      backend.finish();
    }
  }
  check(close(sides[0].encoder, sides[1].encoder) && close(sides[0].decoder, sides[1].decoder),
        name + ": rows");
  std::size_t some = 0;
  for (const std::uint16_t bits : sides[1].moments[0]) some += bits != 0;
  check(sides[0].moments == sides[1].moments && some > 100, name + ": moments");
  bool scales = true;
  for (std::size_t i = 0; i < 4; ++i) scales = scales && close(sides[0].scales[i], sides[1].scales[i]);
  check(scales && (kept != DType::u8 || sides[1].scales[0].values[1] > 0), name + ": scales");
}

}  // namespace

int main() {
  Devices devices;
  selections<float>(devices);
  selections<double>(devices);
  latents_with_long_lists(devices);
  for (const DType kept : {DType::bf16, DType::u8}) {
    for (const int optimizer : {1, 2, 3}) updates_of_moments_in_few_bits(devices, kept, optimizer);
  }
  return verdict("codes");
}
