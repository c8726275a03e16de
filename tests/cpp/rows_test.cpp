// What moves rows to a device: the short formats they come in, and the ring of memory they pass through.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/convert.h"
#include "ring.h"
#include "testing.h"

namespace {

using namespace fastsae;
using fastsae::cuda::Ring;

// Every half, by the definition of the format.
void halves_are_exact() {
  bool all = true;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    const float value = F16{static_cast<std::uint16_t>(bits)}.value();
    if (exponent == 31) {
      all &= mantissa == 0 ? value == sign * HUGE_VALF : std::isnan(value);
      continue;
    }
    const double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    all &= value == sign * expected && std::signbit(value) == (sign < 0);
  }
  check(all, "every half is what IEEE 754 says");
}

void rows_of_any_type_are_converted() {
  const F16 halves[] = {{0x3c00}, {0xc100}, {0x0001}};
  const Bf16 brains[] = {{0x3f80}, {0xc020}, {0x7f80}};
  double wide[3];
  float narrow[3];
  row_converter(DType::f16, DType::f64)(halves, wide, 3);
  check(wide[0] == 1 && wide[1] == -2.5 && wide[2] == 0x1p-24, "float16 rows");
  row_converter(DType::bf16, DType::f32)(brains, narrow, 3);
  check(narrow[0] == 1 && narrow[1] == -2.5 && narrow[2] == HUGE_VALF, "bfloat16 rows");
  check(outside(brains[2], -1e38, 1e38) && !outside(brains[0], 0, 1) && outside(std::nan(""), -1, 1),
        "bounds");
  check(outside(HUGE_VALF, -1e308, 1e308), "an infinite float is beyond the largest double");
}

// A device that reads parts late: a part is read when its slot is waited for, with all that were sent before it. What
// it reads must be what was put there.
class LateReader {
 public:
  LateReader(std::size_t bytes, int slots) : ring_(bytes, slots), memory_(bytes), slots_(slots) {}

  std::size_t send(std::size_t wanted) {
    const Ring::Part part = ring_.take(wanted, [&](int slot) { wait(slot); });
    check(part.begin + part.bytes <= memory_.size(), "a part lies in the ring");
    check(part.bytes > 0 && part.bytes <= wanted && part.bytes <= ring_.largest(),
          "a part is no larger than asked");
    for (const Sent& sent : sent_) check(sent.part.slot != part.slot, "a slot is not used twice at once");
    check(static_cast<int>(sent_.size()) < slots_, "no more parts on the way than slots");
    std::memset(memory_.data() + part.begin, ++value_, part.bytes);
    sent_.push_back({part, value_});
    most_ = std::max(most_, sent_.size());
    return part.bytes;
  }
  void read_all() {
    while (!sent_.empty()) read();
  }
  std::size_t waits() const { return waits_; }
  std::size_t most_on_the_way() const { return most_; }

 private:
  struct Sent {
    Ring::Part part;
    unsigned char value;
  };
  void wait(int slot) {
    ++waits_;
    const auto waited =
        std::find_if(sent_.begin(), sent_.end(), [&](const Sent& s) { return s.part.slot == slot; });
    if (waited == sent_.end()) return;  // it was read long ago
    for (auto left = waited - sent_.begin(); left >= 0; --left) read();
  }
  void read() {
    const Sent sent = sent_.front();
    sent_.pop_front();
    bool same = true;
    for (std::size_t i = 0; i < sent.part.bytes; ++i) same &= memory_[sent.part.begin + i] == sent.value;
    check(same, "nothing was written over before the device had read it");
  }

  Ring ring_;
  std::vector<unsigned char> memory_;
  const int slots_;
  std::deque<Sent> sent_;
  unsigned char value_ = 0;
  std::size_t waits_ = 0, most_ = 0;
};

void small_parts_wait_for_nothing() {
  LateReader reader(1 << 16, 64);
  for (int i = 0; i < 64; ++i) reader.send(48);
  check(reader.waits() == 0 && reader.most_on_the_way() == 64,
        "as many parts as slots are on the way at once");
  reader.send(48);
  check(reader.waits() == 1, "one more waits for the oldest alone");
  reader.read_all();
}

void large_uploads_go_in_parts() {
  LateReader reader(1 << 14, 64);
  std::size_t left = 100000;
  while (left > 0) left -= reader.send(left);
  check(reader.most_on_the_way() == 4, "parts are filled while others are read");
  reader.read_all();
}

// Sizes that do not divide the ring, over many rounds, with few slots and with many.
void parts_wrap_around() {
  for (const int slots : {1, 2, 3, 7, 64}) {
    LateReader reader(1 << 14, slots);
    Numbers source(1);
    for (int i = 0; i < 3000; ++i) {
      std::size_t left = 1 + (source.bits() >> 16) % (i % 3 == 0 ? 9000 : 300);
      while (left > 0) left -= reader.send(left);
      if (i % 701 == 0) reader.read_all();
    }
    reader.read_all();
  }
}

}  // namespace

int main() {
  halves_are_exact();
  rows_of_any_type_are_converted();
  small_parts_wait_for_nothing();
  large_uploads_go_in_parts();
  parts_wrap_around();
  return verdict("rows");
}
