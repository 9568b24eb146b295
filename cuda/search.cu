// The channel-order search on CUDA: the move of tfmot_asp/permutation/search/moves.py, round for round and bit for bit.
//
// A task is one block of stripes of one chain. A round is four launches over all tasks: pick_columns, excess_product,
// assign, refresh_stripes. All sums are of integers, every minimum is taken at the lowest index, and random numbers are
// functions of (key, counter): the result does not depend on launch geometry, scheduling or device.
//
// Compiled at run time with STRIPE (n) and KEEP (n - m) defined, so that a stripe's values live in registers.
// tests/search/host_cuda.h lets the same source compile as host C++, which is how it is tested without a GPU.

#ifndef STRIPE
#define STRIPE 4
#endif
#ifndef KEEP
#define KEEP 2
#endif

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) int name[]
#endif

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define TILE 64        // columns per side of a product tile
#define CHUNK 64       // rows staged at a time
#define STRIDE 72      // 16-bit values from one staged column to the next: 16-byte reads of 8 neighbours meet no bank twice
#define THREADS 256
#define COST_BITS 26
#define FAR 0x7fffffff

// Two 16-bit values per register. Codes are below 2**12, and as bit patterns of half floats non-negative numbers order
// as the integers do, subnormals included: one instruction for two maxima, on every chip since sm_80.
__device__ __forceinline__ u32 max_pair(u32 a, u32 b) {
#if defined(__CUDA_ARCH__)
    u32 result;
#if __CUDA_ARCH__ >= 900
    asm("max.u16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#else
    asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#endif
    return result;
#else
    u32 low = (a & 0xffffu) > (b & 0xffffu) ? (a & 0xffffu) : (b & 0xffffu);
    u32 high = (a >> 16) > (b >> 16) ? (a >> 16) : (b >> 16);
    return high << 16 | low;
#endif
}

__device__ __forceinline__ u64 draw(u64 key, u64 counter) {
    u64 z = key + (counter + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Arguments that all kernels share: stripes holds the stripes of all tasks, task t's from first[t] to first[t + 1];
// chain[t] and key[t] are its chain and random key; most is the largest number of stripes of a task.

// One position of every stripe, and the column there. Launch: (tasks), THREADS.
extern "C" __global__ void pick_columns(
    const int* stripes, const int* first, const int* chain, const u64* key, int round, int columns, int most,
    const int* order, int* position, int* index) {
    int task = blockIdx.x;
    int size = first[task + 1] - first[task];
    u64 slots = draw(draw(key[task], round), 1);
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        int begin = stripes[first[task] + i] * STRIPE;
        int width = columns - begin < STRIPE ? columns - begin : STRIPE;
        int place = begin + (int)((draw(slots, i) >> 33) % (u64)width);
        position[task * most + i] = place;
        index[task * most + i] = order[(i64)chain[task] * columns + place];
    }
}

// Adds sum over rows of max(x_j, b_i) to excess[task][i][j], for x_j = codes[index[j]], b_i = thresholds[index[i]].
// Launch: (tiles * tiles, splits of the rows, tasks), THREADS; each thread owns 4 x 4 sums.
extern "C" __global__ void excess_product(
    const int* first, const int* chain, const int* index, const u16* codes, const u16* thresholds, i64 rows, i64 columns,
    i64 rows_per_split, int most, u64* excess) {
    __shared__ __align__(16) u16 x_stage[TILE * STRIDE];
    __shared__ __align__(16) u16 b_stage[TILE * STRIDE];
    int task = blockIdx.z;
    int size = first[task + 1] - first[task];
    int tiles = (most + TILE - 1) / TILE;
    int i0 = (int)(blockIdx.x / tiles) * TILE;
    int j0 = (int)(blockIdx.x % tiles) * TILE;
    if (i0 >= size || j0 >= size) return;
    const u16* b_matrix = thresholds + (i64)chain[task] * columns * rows;
    const int* picked = index + (i64)task * most;
    i64 start = (i64)blockIdx.y * rows_per_split;
    i64 end = start + rows_per_split < rows ? start + rows_per_split : rows;
    int ti = threadIdx.x / 16;
    int tj = threadIdx.x % 16;
    u32 wide[4][4];
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int c = 0; c < 4; c++) wide[a][c] = 0;
    for (i64 row = start; row < end; row += CHUNK) {
        for (int v = threadIdx.x; v < TILE * CHUNK / 8; v += THREADS) {
            int column = v / (CHUNK / 8);
            int offset = v % (CHUNK / 8) * 8;
            uint4 x = make_uint4(0, 0, 0, 0);
            uint4 b = make_uint4(0, 0, 0, 0);
            if (row + offset < end) {  // rows come in multiples of 16
                if (j0 + column < size) x = *(const uint4*)(codes + (i64)picked[j0 + column] * rows + row + offset);
                if (i0 + column < size) b = *(const uint4*)(b_matrix + (i64)picked[i0 + column] * rows + row + offset);
            }
            *(uint4*)(x_stage + column * STRIDE + offset) = x;
            *(uint4*)(b_stage + column * STRIDE + offset) = b;
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < CHUNK; half += 32) {  // 16 pairs of rows: 16 * 4095 < 2**16
            u32 narrow[4][4];
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int c = 0; c < 4; c++) narrow[a][c] = 0;
#pragma unroll
            for (int offset = half; offset < half + 32; offset += 8) {
                uint4 x[4], b[4];
#pragma unroll
                for (int a = 0; a < 4; a++) {
                    b[a] = *(const uint4*)(b_stage + (ti + 16 * a) * STRIDE + offset);
                    x[a] = *(const uint4*)(x_stage + (tj + 16 * a) * STRIDE + offset);
                }
#pragma unroll
                for (int a = 0; a < 4; a++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        narrow[a][c] += max_pair(b[a].x, x[c].x) + max_pair(b[a].y, x[c].y);
                        narrow[a][c] += max_pair(b[a].z, x[c].z) + max_pair(b[a].w, x[c].w);
                    }
            }
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int c = 0; c < 4; c++) wide[a][c] += (narrow[a][c] & 0xffffu) + (narrow[a][c] >> 16);
        }
        __syncthreads();
    }
    for (int a = 0; a < 4; a++)
        for (int c = 0; c < 4; c++) {
            int i = i0 + ti + 16 * a;
            int j = j0 + tj + 16 * c;
            if (i < size && j < size) atomicAdd(excess + ((i64)task * most + i) * most + j, (u64)wide[a][c]);
        }
}

// What one lane finds: its smallest value and its next, each at the lowest index.
struct Two {
    int best, best_at, next, next_at;
};

__device__ __forceinline__ void consider(Two& two, int value, int at) {
    if (value < two.best) {
        two.next = two.best;
        two.next_at = two.best_at;
        two.best = value;
        two.best_at = at;
    } else if (value < two.next) {
        two.next = value;
        two.next_at = at;
    }
}

__device__ __forceinline__ int lowest_at(int value, int at, int smallest) {
    return __reduce_min_sync(0xffffffffu, value == smallest ? at : FAR);
}

// Row i of the costs: the first rows that fit are kept in shared memory.
struct Costs {
    const int* near_rows;
    const int* far_rows;
    int near_count, size;
    __device__ __forceinline__ const int* row(int i) const {
        return (i < near_count ? near_rows : far_rows) + (i64)i * size;
    }
};

// assignment.py's _reduce_rows, by one warp.
__device__ int reduce_rows(
    const Costs& cost, int* column_of_row, int* row_of_column, int* potential, int* free_rows, int waiting) {
    int lane = threadIdx.x;
    int size = cost.size;
    int left = 0;
    int k = 0;
    int evictions = 8 * size;
    while (k < waiting) {
        int i = free_rows[k];
        k += 1;
        const int* row = cost.row(i);
        Two two = {FAR, FAR, FAR, FAR};
        for (int j = lane; j < size; j += 32) consider(two, row[j] - potential[j], j);
        int best = __reduce_min_sync(0xffffffffu, two.best);
        int column = lowest_at(two.best, two.best_at, best);
        bool mine = two.best_at == column;
        int rest = mine ? two.next : two.best;
        int rest_at = mine ? two.next_at : two.best_at;
        int second = __reduce_min_sync(0xffffffffu, rest);
        int second_column = lowest_at(rest, rest_at, second);
        int owner = row_of_column[column];
        bool lower = best < second && second != FAR;
        bool strict = best < second;
        if (!strict && owner >= 0) {
            column = second_column;
            owner = row_of_column[column];
        }
        bool again = false;
        if (owner >= 0) {
            evictions -= 1;
            again = strict && evictions > 0;
        }
        __syncwarp();
        if (lane == 0) {
            if (lower) potential[column] -= second - best;
            row_of_column[column] = i;
            column_of_row[i] = column;
            if (owner >= 0) {
                column_of_row[owner] = -1;
                free_rows[again ? k - 1 : left] = owner;
            }
        }
        if (owner >= 0) {
            if (again)
                k -= 1;
            else
                left += 1;
        }
        __syncwarp();
    }
    return left;
}

// assignment.py's _augment, by one warp.
__device__ void augment(
    const Costs& cost, int* column_of_row, int* row_of_column, int* potential, int* open_distance, int* distance,
    int* previous, int start) {
    int lane = threadIdx.x;
    int size = cost.size;
    const int* row = cost.row(start);
    for (int j = lane; j < size; j += 32) {
        open_distance[j] = row[j] - potential[j];
        distance[j] = FAR;
        previous[j] = start;
    }
    int column, nearest;
    while (true) {
        Two two = {FAR, FAR, FAR, FAR};
        for (int j = lane; j < size; j += 32) consider(two, open_distance[j], j);
        nearest = __reduce_min_sync(0xffffffffu, two.best);
        column = lowest_at(two.best, two.best_at, nearest);
        int owner = row_of_column[column];
        if (owner < 0) break;
        row = cost.row(owner);
        int offset = row[column] - potential[column] - nearest;
        if (column % 32 == lane) {
            distance[column] = nearest;
            open_distance[column] = FAR;
        }
        for (int j = lane; j < size; j += 32) {
            int through = row[j] - potential[j] - offset;
            if (through < open_distance[j] && distance[j] == FAR) {
                open_distance[j] = through;
                previous[j] = owner;
            }
        }
    }
    __syncwarp();
    for (int j = lane; j < size; j += 32)
        if (distance[j] != FAR) potential[j] += distance[j] - nearest;
    __syncwarp();
    if (lane == 0) {
        while (true) {
            int i = previous[column];
            row_of_column[column] = i;
            int before = column_of_row[i];
            column_of_row[i] = column;
            if (i == start) break;
            column = before;
        }
    }
    __syncwarp();
}

__device__ void least_and_most(i64 low, i64 high, i64* shared_low, i64* shared_high) {
    int t = threadIdx.x;
    shared_low[t] = low;
    shared_high[t] = high;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) {
            if (shared_low[t + half] < shared_low[t]) shared_low[t] = shared_low[t + half];
            if (shared_high[t + half] > shared_high[t]) shared_high[t] = shared_high[t + half];
        }
        __syncthreads();
    }
}

// Solves each task's assignment and writes its columns to their new positions. Launch: (tasks), THREADS, with
// 7 * most + near_rows * most ints of dynamic shared memory. Leaves excess zeroed for the next round.
extern "C" __global__ void assign(
    const int* first, const int* chain, const u64* key, int round, i64 temperature, const i64* table, const u64* threshold_sum,
    int columns, int most, int near_rows, const int* position, const int* index, u64* excess, int* cost, int* order,
    int* changed) {
    DYNAMIC_SHARED(scratch);
    __shared__ i64 shared_low[THREADS];
    __shared__ i64 shared_high[THREADS];
    int task = blockIdx.x;
    int size = first[task + 1] - first[task];
    int* potential = scratch;
    int* open_distance = scratch + most;
    int* distance = scratch + 2 * most;
    int* previous = scratch + 3 * most;
    int* free_rows = scratch + 4 * most;
    int* column_of_row = scratch + 5 * most;
    int* row_of_column = scratch + 6 * most;
    int* near = scratch + 7 * most;
    int* far = cost + (i64)task * most * most;
    u64* sums = excess + (i64)task * most * most;
    const int* picked = index + (i64)task * most;
    const u64* base = threshold_sum + (i64)chain[task] * columns;
    u64 noise = draw(draw(key[task], round), 2);

    i64 low = 0x7fffffffffffffffll;
    i64 high = -0x7fffffffffffffffll;
    for (int e = threadIdx.x; e < size * size; e += THREADS) {
        int i = e / size;
        int j = e % size;
        i64 value = (i64)(sums[(i64)i * most + j] - base[picked[i]]);
        if (temperature > 0) value += (table[draw(noise, (u64)e) >> 52] * temperature) >> 16;
        sums[(i64)i * most + j] = (u64)value;
        if (value < low) low = value;
        if (value > high) high = value;
    }
    least_and_most(low, high, shared_low, shared_high);
    low = shared_low[0];
    high = shared_high[0];
    int shift = 0;
    while ((high - low) >> shift >= 1ll << COST_BITS) shift += 1;
    Costs costs = {near, far, near_rows < size ? near_rows : size, size};
    for (int e = threadIdx.x; e < size * size; e += THREADS) {
        int i = e / size;
        int j = e % size;
        int value = (int)((high - (i64)sums[(i64)i * most + j]) >> shift);
        sums[(i64)i * most + j] = 0;
        (i < costs.near_count ? near : far)[(i64)i * size + j] = value;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < size; j += THREADS) {
        i64 sum = 0;
        for (int i = 0; i < size; i++) sum += costs.row(i)[j];
        potential[j] = (int)(sum / size);
        row_of_column[j] = -1;
        column_of_row[j] = -1;
        free_rows[j] = j;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        int left = reduce_rows(costs, column_of_row, row_of_column, potential, free_rows, size);
        left = reduce_rows(costs, column_of_row, row_of_column, potential, free_rows, left);
        for (int k = 0; k < left; k++)
            augment(costs, column_of_row, row_of_column, potential, open_distance, distance, previous, free_rows[k]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += THREADS) {
        order[(i64)chain[task] * columns + position[(i64)task * most + i]] = picked[column_of_row[i]];
        changed[(i64)task * most + i] = column_of_row[i] != i;
    }
}

// Recomputes thresholds, and their sums over the rows, of the stripes marked in changed (of all, if it is null).
// Launch: (most, tasks), THREADS.
extern "C" __global__ void refresh_stripes(
    const int* stripes, const int* first, const int* chain, const int* changed, const u16* codes, u16* thresholds,
    const int* order, i64 rows, i64 columns, int most, u64* threshold_sum) {
    __shared__ u64 total[STRIPE];
    int task = blockIdx.y;
    int i = blockIdx.x;
    if (i >= first[task + 1] - first[task]) return;
    if (changed != 0 && !changed[(i64)task * most + i]) return;
    i64 begin = (i64)stripes[first[task] + i] * STRIPE;
    int width = columns - begin < STRIPE ? (int)(columns - begin) : STRIPE;
    i64 state = (i64)chain[task] * columns;
    if (threadIdx.x < STRIPE) total[threadIdx.x] = 0;
    __syncthreads();
    i64 column[STRIPE];
    u32 sum[STRIPE];
#pragma unroll
    for (int k = 0; k < STRIPE; k++) {
        column[k] = order[state + begin + (k < width ? k : 0)];
        sum[k] = 0;
    }
    for (i64 r = 2 * (i64)threadIdx.x; r < rows; r += 2 * THREADS) {
        u32 x[STRIPE];
        u32 top[KEEP + 1];
#pragma unroll
        for (int q = 0; q <= KEEP; q++) top[q] = 0;
#pragma unroll
        for (int k = 0; k < STRIPE; k++) {
            x[k] = k < width ? *(const u32*)(codes + column[k] * rows + r) : 0;
            u32 value = x[k];
#pragma unroll
            for (int q = 0; q <= KEEP; q++) {
                u32 larger = max_pair(top[q], value);
                value = top[q] + value - larger;  // the smaller, in both halves: no half can borrow from the other
                top[q] = larger;
            }
        }
        u32 above_low = top[KEEP - 1] & 0xffffu, above_high = top[KEEP - 1] >> 16;
        u32 below_low = top[KEEP] & 0xffffu, below_high = top[KEEP] >> 16;
#pragma unroll
        for (int k = 0; k < STRIPE; k++) {
            if (k < width) {
                u32 low = (x[k] & 0xffffu) >= above_low ? below_low : above_low;
                u32 high = (x[k] >> 16) >= above_high ? below_high : above_high;
                *(u32*)(thresholds + (state + column[k]) * rows + r) = high << 16 | low;
                sum[k] += low + high;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < STRIPE; k++)
        if (k < width) atomicAdd(total + k, (u64)sum[k]);
    __syncthreads();
    if ((int)threadIdx.x < width) threshold_sum[state + order[state + begin + threadIdx.x]] = total[threadIdx.x];
}
