// The standard library, to be included before any instruction set is chosen: what of it is compiled here must run
// on every processor, since the linker keeps one copy for all.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "structures.h"
