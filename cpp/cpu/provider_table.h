// Made by benchmarks/bench_products.py --tune: from how many rows on our own product kernels are faster.
#pragma once

#include <cstdint>

namespace fastsae::cpu {

inline constexpr std::int64_t kTableRows[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 1024};
inline constexpr std::int64_t kTableCols[] = {1, 2, 4, 8, 12, 16, 18, 24, 32, 36, 48, 64, 100, 200, 800};
inline constexpr std::int64_t kTableInner[] = {1, 4, 16, 64, 256, 1024};

// By instruction set and type, how the factors lie, columns, and (a letter each) inner dimension: a place of kTableRows.
inline constexpr const char* kFirstRows[][3][15] = {
    // avx2, float32: neither factor transposed, the second, the first
    {{"akkkkj", "kkkkkk", "kkkkkk", "kkkkkk", "kkkjih", "hffaaa", "ihkjih", "ffdaaa", "kfdaaa", "hfejhf",
      "feaaaa", "fdaaaa", "kejaak", "icaaaa", "gbaaaa"},
     {"akkkkj", "kkkkkk", "kkkkkk", "kkkkkk", "kkfaaa", "hgdaaa", "ihcaaa", "ffcaaa", "khkaaa", "ihdaaa",
      "hgaaaa", "jgaaaa", "jhaaaa", "iijaaa", "iihaaa"},
     {"akkkkk", "kkkkkk", "kkkkkk", "kkkkkk", "kjkfhh", "hfdaaa", "khjjih", "ffdaaa", "kfdaaa", "kfjjij",
      "fdaaaa", "fdaaaa", "fdaaaa", "dcaaaa",
      "dcaaaa"}},  // avx2, float64: neither factor transposed, the second, the first
    {{"ajgfff", "kjfffg", "kifecb", "igebbb", "ffcbaa", "kfebaa", "gfejhh", "febaaa", "febaaa", "febaaa",
      "edaaaa", "fdaaaa", "ecaaaa", "dbaaaa", "daaaak"},
     {"kjffdc", "kjffcc", "kiffbb", "hgfbbb", "gfebbb", "khfbbb", "hgfbbb", "gfebbb", "ggebbg", "ggebbf",
      "gfebbf", "hffhgg", "ighjgf", "hghhgf", "hfghah"},
     {"kkgkff", "kkgfff", "kkffbb", "khebab", "gfbaaa", "hhbbaa", "ggebbb", "febaaa", "febaaa", "febaaa",
      "feaaaa", "fdaaaa", "dcaaaa", "dbaaaa",
      "daaaaa"}},  // avx512, float32: neither factor transposed, the second, the first
    {{"kkikkk", "kkjkkk", "kkikkk", "kkkkkj", "kkkkkj", "kkkkji", "kkkkkk", "kkkkji", "kkkkjh", "jkkkkj",
      "kkkjjf", "kkkjig", "jkkjif", "kkkjie", "ijjhfd"},
     {"akkkkk", "kkkkkk", "hiikkk", "hhfiij", "ffdhhj", "ffdhhi", "ghkjkk", "ffcjii", "eeaihh", "ffajhf",
      "deajhf", "efaigg", "ffaige", "feahfe", "eeabbd"},
     {"kkkkkk", "kkkkkk", "ijkkkj", "gghkkj", "kkkkkj", "kkkkji", "kkkkjk", "ggjkji", "kkkkjh", "hikkjh",
      "kkkkjf", "kkkjig", "jkkjif", "hkjjhe",
      "kjjhfd"}},  // avx512, float64: neither factor transposed, the second, the first
    {{"kkkkkk", "kkkkkk", "kkkkkj", "kkjkkj", "kkkkkj", "kkjkji", "jjkkji", "ikjkci", "kkkkjh", "kkjkjf",
      "jkkkjf", "jkkjig", "kkkjge", "jjkjge", "hjjhff"},
     {"agfkkk", "ggejjk", "ggejjj", "ffdgih", "ffchhj", "eechhh", "eechhi", "eebggi", "eecggh", "fecggf",
      "eebgff", "eebgfg", "eeagfe", "eebffe", "fefhfd"},
     {"kkkkkj", "kkkkkk", "iikkkj", "kkkjkj", "hijjkk", "kkkkji", "jkkkjk", "ikjjji", "kkkkjh", "hjkkjh",
      "jkkkjh", "jjkjig", "iikjhe", "jhkjge", "hhjhhd"}}};

}  // namespace fastsae::cpu
