// Stands in for kernels of an instruction set that the compiler or the machine does not have.
#include "kernels.h"

namespace secateur {
#if !defined(SEC_HAS_AVX2)
const Kernels* kernels_avx2() { return nullptr; }
#endif
#if !defined(SEC_HAS_AVX512)
const Kernels* kernels_avx512() { return nullptr; }
#endif
}  // namespace secateur
