// A chat template of any text is applied or refused.
#include "regard/error.h"
#include "regard/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const regard::ChatMessage messages[] = {{.role = "system", .content = "be brief"},
                                          {.role = "user", .content = "why? \xC3\xA9"},
                                          {.role = "assistant", .content = "so"},
                                          {.role = "user", .content = ""}};
  try {
    (void)regard::apply_chat_template(std::string_view(reinterpret_cast<const char*>(data), size), messages, "<s>",
                                      "</s>");
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  return 0;
}
