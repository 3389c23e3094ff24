# What every target of ours is compiled with; consumers of the library inherit none of it.
add_library(regard_build_flags INTERFACE)
target_compile_options(
  regard_build_flags
  INTERFACE -Wall
            -Wextra
            -Wpedantic
            -Wconversion
            -Wshadow
            # Options are structs whose members have defaults; naming only some of them is the point.
            -Wno-missing-field-initializers
            -Werror
            # A contracted a*b+c has other bits than the two operations; where a fused one is meant, it is written.
            -ffp-contract=off)

set(REGARD_SANITIZE "" CACHE STRING "Sanitizers to build with, e.g. address,undefined or thread")
if(REGARD_SANITIZE)
  target_compile_options(regard_build_flags INTERFACE -fsanitize=${REGARD_SANITIZE} -fno-sanitize-recover=all
                                                      -fno-omit-frame-pointer)
  target_link_options(regard_build_flags INTERFACE -fsanitize=${REGARD_SANITIZE})
endif()
