// A table of slots made on the device: nothing is copied from the host, so a captured graph can hold
// the launch. Word w of row i is first[w] + i * step[w].
#pragma once

#include <cstdint>

#include "sizes.h"

namespace clonewave {

constexpr int kMaxSlotWords = 24;  // 8 bytes each

struct SlotTable {
  uint64_t* out;  // [rows][words]
  int words, rows;
  uint64_t first[kMaxSlotWords], step[kMaxSlotWords];
};

inline HOST_DEVICE void fill_word(const SlotTable& table, int i) {
  if (i >= table.words * table.rows) return;
  const int row = i / table.words, word = i % table.words;
  table.out[i] = table.first[word] + static_cast<uint64_t>(row) * table.step[word];
}

}  // namespace clonewave
