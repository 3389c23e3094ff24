#include "tensor/float_environment.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// The control register itself, because <cfenv> knows no denormal numbers, and saving all of what it knows takes a step
// of decode's 200 some 50 ns. On x86 that is SSE's register: only the oracle computes with the x87's long double.
namespace regard {
namespace {

#if defined(__x86_64__)

// All exceptions masked, no flag raised, to nearest, denormals neither flushed nor read as zero.
constexpr uint64_t kDefault = 0x1F80;
uint64_t control() { return _mm_getcsr(); }
void set_control(uint64_t bits) { _mm_setcsr(static_cast<uint32_t>(bits)); }

#elif defined(__aarch64__)

constexpr uint64_t kDefault = 0;
uint64_t control() {
  uint64_t bits = 0;
  asm volatile("mrs %0, fpcr" : "=r"(bits));
  return bits;
}
void set_control(uint64_t bits) { asm volatile("msr fpcr, %0" : : "r"(bits)); }

#else
#error "The floating-point environment of this processor is not known: add its control register here"
#endif

}  // namespace

FloatEnvironment::FloatEnvironment() : callers_(control()) { set_default(); }
FloatEnvironment::~FloatEnvironment() { set_control(callers_); }

void FloatEnvironment::set_default() { set_control(kDefault); }

}  // namespace regard
