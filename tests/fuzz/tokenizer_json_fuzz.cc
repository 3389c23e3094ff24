// A tokenizer.json of any bytes is read or refused; what is read encodes a text.
#include "regard/error.h"
#include "regard/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer = regard::Tokenizer::from_json({reinterpret_cast<const char*>(data), size});
    (void)tokenizer.decode(
        tokenizer.encode("abc the inn, 12 \xC3\xA9 \xF0\x9F\x98\x80\n\n x<s> e\xCC\x81 \xE2\x96\x81y <0x0A>"));
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  return 0;
}
