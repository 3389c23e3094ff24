#pragma once

#include <rapidcheck.h>

#include <iosfwd>
#include <vector>

#include "layers/oracle.h"
#include "support/plain_f32.h"

// Random cases of attention by itself: the kernels on one side, the oracle's loops on the other.
namespace regard::test {

struct AttendCase {
  // The last `count` tokens of a sequence ask; those before are its prefix. Keys before `padding` are seen by nobody,
  // as in a batch padded on the left [MASK-2].
  struct Sequence {
    int64_t prefix = 0;
    int64_t count = 1;
    int64_t padding = 0;
    int64_t mutual = 0;  // the first so many of them see each other

    [[nodiscard]] int64_t length() const { return prefix + count; }
  };

  AttentionConfig config;  // heads, widths, mask, scale, soft cap, sinks per head
  std::vector<Sequence> sequences;
  DType cache_dtype = DType::f32;
  int64_t spare_capacity = 0;  // of the cache: it chooses the size of the pages
  double spread = 1.0;         // standard deviation of queries and keys
  int threads = 1;
  uint64_t seed = 0;  // of the numbers

  [[nodiscard]] bool sees(const Sequence& sequence, int64_t query, int64_t key) const {
    return key >= sequence.padding &&
           oracle_sees(config, sequence.prefix + query, key, sequence.prefix + sequence.mutual);
  }
};
std::ostream& operator<<(std::ostream& out, const AttendCase& c);

// Mostly short sequences, some of up to 2000 tokens.
rc::Gen<AttendCase> attend_cases();

struct AttendNumbers {
  struct Sequence {
    std::vector<float> queries;  // [count, heads, head_dim]
    std::vector<float> keys;     // [length, kv_heads, head_dim], values of the cache's type
    std::vector<float> values;   // [length, kv_heads, v_head_dim]
  };
  std::vector<Sequence> sequences;
  std::vector<float> sinks;  // [heads, sinks per head]
};
AttendNumbers make_numbers(const AttendCase& c);

OracleAttendInput oracle_input(const AttendCase& c, const AttendNumbers& numbers, size_t sequence);

// What the kernels make of all sequences in one call, sequence by sequence.
std::vector<Attended> attend_by_kernels(const AttendCase& c, const AttendNumbers& numbers, int threads);

}  // namespace regard::test
