// Made by benchmarks/bench_products.py --tune: from how many rows on our own product kernels are faster.
#pragma once

#include <cstdint>

namespace fastsae::cpu {

inline constexpr std::int64_t kTableRows[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
inline constexpr std::int64_t kTableCols[] = {1,  2,  3,  4,  6,  8,   12,  16, 18,
                                              24, 32, 36, 48, 64, 100, 200, 800};
inline constexpr std::int64_t kTableInner[] = {1, 4, 16, 64, 256, 1024};

// By instruction set and type, how the factors lie, columns, and (a letter each) inner dimension: a place of
// kTableRows.
inline constexpr const char* kFirstRows[][3][17] = {
    // avx2, float32: neither factor transposed, the second, the first
    {{"akllll", "ljllll", "llljhf", "llkjll", "ljhfdd", "llkkll", "ljiggf", "hhfbaa", "ihhhgf", "hgeaaa",
      "jhfaaa", "hhfgaa", "gfdaaa", "hfdaaa", "ifdaaa", "gdaaaa", "ecaaaa"},
     {"lllllk", "lllllj", "llljaa", "llkjll", "ljhbaa", "lljjll", "ljhaaa", "hhfaaa", "ihfaaa", "hgeaaa",
      "jhfaaa", "jheaaa", "hgdaaa", "hhdaaa", "jhcaaa", "hgaaaa", "ggaaaa"},
     {"lllllj", "llllkj", "llljhf", "lllihl", "llhfdd", "lllila", "llhfff", "jhfaaa", "lhhhgf", "hfdaaa",
      "jhfaaa", "lhfdaa", "gfdaaa", "hfdaaa", "hfdaaa", "fdaaaa",
      "ecaaaa"}},  // avx2, float64: neither factor transposed, the second, the first
    {{"lkgfff", "ljgfff", "lhfeee", "ljgfcb", "lhffee", "ihfbbb", "hgfbaa", "ihfbaa", "hgfebb", "gfcaaa",
      "gfcaaa", "gfcaaa", "febaaa", "febaaa", "feaaaa", "ecaaaa", "daaaaa"},
     {"lkgfdc", "ljgfcb", "lhfcaa", "ljgfbb", "lifcbb", "ihfbbb", "hgfbbb", "jhfbbb", "ihfbbb", "hgfbbb",
      "hgfbbb", "ggfbbb", "hgfbbb", "ggfbbb", "ggfbbb", "gfebbb", "gfdbaa"},
     {"lllllf", "lllkff", "liffee", "lllfbb", "ljgfef", "jifbbb", "hgebaa", "iihbaa", "ihfebb", "hgcaaa",
      "ggcaaa", "gfbaaa", "gebaaa", "febaaa", "feaaaa", "ecaaaa",
      "daaaaa"}},  // avx512, float32: neither factor transposed, the second, the first
    {{"llilll", "lljlll", "lljlll", "lljlll", "lljllk", "lljllj", "lljihj", "lljhec", "lkilll", "lkilki",
      "llihje", "jjillh", "jjifcc", "ljhkec", "kihkie", "jiheee", "hfdccd"},
     {"akllll", "llllll", "hhhjjl", "hijjll", "hhfiik", "hhfiij", "ggdhhj", "ggefgi", "hhiill", "hgdggi",
      "gfcggh", "ffcglf", "ffaeff", "ffaffg", "ffafee", "ffadde", "eeabbd"},
     {"llllll", "llllll", "llllll", "jjlllk", "hhkllk", "gghllj", "lljihj", "lljiki", "llllkl", "ggilki",
      "llihjh", "iiiljh", "ljifee", "lihkdc", "jihkie", "ggfjce",
      "hfdccc"}},  // avx512, float64: neither factor transposed, the second, the first
    {{"llllll", "llllll", "llllll", "llkllk", "lljihg", "lljhfe", "jkjjlj", "lkihee", "jjilki", "jkihcc",
      "ljifdc", "ljhljf", "ljhfcc", "kkiedg", "jjhkee", "ihfdca", "gfdcaa"},
     {"agflll", "ggfkkl", "ggejjl", "ggfjjk", "ggeiig", "gfeghg", "gfehhj", "ffcggh", "fechhi", "eecggf",
      "fecggg", "ffcggf", "febfff", "febffg", "febfee", "eecdde", "eebbbd"},
     {"llllkk", "llllll", "llljjl", "iilllk", "llkihg", "lljihe", "iijjlj", "lkihee", "kkjlki", "jkihee",
      "ljiljc", "hjhljf", "ljhfcc", "kihedc", "ghhkec", "igfccc", "gfdcaa"}}};

}  // namespace fastsae::cpu
