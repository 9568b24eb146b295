// Entry points for Python: a launch on the host of each kernel of cuda/search.cu. Arguments come as 64-bit words.

#include "host_cuda.h"

#include "search.cu"

template <class T>
static T* pointer(const uint64_t* words, int k) {
    return (T*)(uintptr_t)words[k];
}

extern "C" int host_kernel(const char* name, const int* grid, int threads, int shared_bytes, const uint64_t* w) {
    if (!strcmp(name, "pick_columns"))
        return host_launch(grid, threads, shared_bytes, [=] {
            pick_columns(
                pointer<int>(w, 0), pointer<int>(w, 1), pointer<int>(w, 2), pointer<u64>(w, 3), (int)w[4], (int)w[5],
                (int)w[6], pointer<int>(w, 7), pointer<int>(w, 8), pointer<int>(w, 9));
        });
    if (!strcmp(name, "excess_product"))
        return host_launch(grid, threads, shared_bytes, [=] {
            excess_product(
                pointer<int>(w, 0), pointer<int>(w, 1), pointer<int>(w, 2), pointer<u16>(w, 3), pointer<u16>(w, 4),
                (i64)w[5], (i64)w[6], (i64)w[7], (int)w[8], pointer<u64>(w, 9));
        });
    if (!strcmp(name, "assign"))
        return host_launch(grid, threads, shared_bytes, [=] {
            assign(
                pointer<int>(w, 0), pointer<int>(w, 1), pointer<u64>(w, 2), (int)w[3], (i64)w[4], pointer<i64>(w, 5),
                pointer<u64>(w, 6), (int)w[7], (int)w[8], (int)w[9], pointer<int>(w, 10), pointer<int>(w, 11),
                pointer<u64>(w, 12), pointer<int>(w, 13), pointer<int>(w, 14), pointer<int>(w, 15));
        });
    if (!strcmp(name, "refresh_stripes"))
        return host_launch(grid, threads, shared_bytes, [=] {
            refresh_stripes(
                pointer<int>(w, 0), pointer<int>(w, 1), pointer<int>(w, 2), pointer<int>(w, 3), pointer<u16>(w, 4),
                pointer<u16>(w, 5), pointer<int>(w, 6), (i64)w[7], (i64)w[8], (int)w[9], pointer<u64>(w, 10));
        });
    return 3;
}
