/*
 * feature: floating-point rounding mode and exception flags
 */
#include "check.h"
#include <fenv.h>
#include <math.h>

int main(int argc, char **argv) {
    volatile double one = 1, three = 3, zero = 0;
    check_start(argc, argv);
    SYS(fesetround(FE_UPWARD));
    double up = one / three;
    feclearexcept(FE_ALL_EXCEPT);
    volatile double infinite = one / zero;
    CHECK(isinf(infinite) && fetestexcept(FE_DIVBYZERO), "the flag is not set to begin with");
    check_move();
    CHECK(fegetround() == FE_UPWARD, "the rounding mode is %#x", fegetround());
    CHECK(fetestexcept(FE_DIVBYZERO), "the exception flag is gone");
    CHECK(one / three == up, "a division rounds differently");
    return check_passed();
}
