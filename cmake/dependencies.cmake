# Debian: libhwy-dev libfmt-dev libpcre2-dev libutf8proc-dev nlohmann-json3-dev libcli11-dev libgtest-dev
# librapidcheck-dev libbenchmark-dev libopenmpi-dev openmpi-bin
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(fmt 9 REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)

# The C interface, from C++; the old C++ one is left alone.
set(MPI_CXX_SKIP_MPICXX ON)
if(REGARD_WITH_MPI STREQUAL ON)
  find_package(MPI REQUIRED COMPONENTS CXX)
elseif(REGARD_WITH_MPI STREQUAL AUTO)
  find_package(MPI COMPONENTS CXX)
endif()
