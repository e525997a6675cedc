// The kernels of one MoE layer that torch does not have in one piece. All weights and activations are bfloat16, all sums
// float, and every sum has one fixed order, so that the same experts give the same bits whoever copied them and when.
//
// Macros: HIDDEN, INTERMEDIATE (of an expert), TOP_K, EXPERTS, HEADS, KV_HEADS, HEAD_SIZE, MAX_EXPERTS, MAX_PAIRS.

typedef unsigned short bf16;
typedef unsigned long long u64;

__device__ __forceinline__ float wide(unsigned bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ bf16 narrow(float value) {  // to nearest, ties to even
    unsigned bits = __float_as_uint(value);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
__device__ __forceinline__ float dot8(uint4 a, uint4 b, float sum) {
    sum = fmaf(__uint_as_float(a.x << 16), __uint_as_float(b.x << 16), sum);
    sum = fmaf(__uint_as_float(a.x & 0xffff0000u), __uint_as_float(b.x & 0xffff0000u), sum);
    sum = fmaf(__uint_as_float(a.y << 16), __uint_as_float(b.y << 16), sum);
    sum = fmaf(__uint_as_float(a.y & 0xffff0000u), __uint_as_float(b.y & 0xffff0000u), sum);
    sum = fmaf(__uint_as_float(a.z << 16), __uint_as_float(b.z << 16), sum);
    sum = fmaf(__uint_as_float(a.z & 0xffff0000u), __uint_as_float(b.z & 0xffff0000u), sum);
    sum = fmaf(__uint_as_float(a.w << 16), __uint_as_float(b.w << 16), sum);
    sum = fmaf(__uint_as_float(a.w & 0xffff0000u), __uint_as_float(b.w & 0xffff0000u), sum);
    return sum;
}
__device__ __forceinline__ float over_warp(float sum) {
    for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

__device__ __forceinline__ u64 now() {
    u64 ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}

// ---- experts: which slots, and which (token, choice) pairs each of them serves, by value: nothing else is copied

struct Work {
    int experts;
    int first_pair[MAX_EXPERTS + 1];
    int slot[MAX_EXPERTS];
    short pair[MAX_PAIRS];  // token * TOP_K + choice
};

constexpr int WARPS = 4;
constexpr int TILE = 4;  // tokens that share one reading of the weights

// A slot: gate [INTERMEDIATE, HIDDEN], up [INTERMEDIATE, HIDDEN], down [HIDDEN, INTERMEDIATE], then the tag, 64 bits.
constexpr u64 MATRIX = (u64)HIDDEN * INTERMEDIATE;

template <int TOKENS>
__device__ void gate_up_rows(const bf16* gate, const bf16* up, const bf16* x, bf16* h, const short* pair, int row, int lane) {
    float g[TOKENS] = {}, u[TOKENS] = {};
    const uint4* gate_row = (const uint4*)(gate + (u64)row * HIDDEN);
    const uint4* up_row = (const uint4*)(up + (u64)row * HIDDEN);
#pragma unroll 8
    for (int c = lane; c < HIDDEN / 8; c += 32) {
        uint4 a = gate_row[c], b = up_row[c];
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            uint4 v = ((const uint4*)(x + (u64)(pair[t] / TOP_K) * HIDDEN))[c];
            g[t] = dot8(a, v, g[t]);
            u[t] = dot8(b, v, u[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float gate_sum = over_warp(g[t]), up_sum = over_warp(u[t]);
        if (lane == 0) h[(u64)pair[t] * INTERMEDIATE + row] = narrow(gate_sum / (1.0f + __expf(-gate_sum)) * up_sum);
    }
}

template <int TOKENS>
__device__ void down_rows(const bf16* down, const bf16* h, bf16* out, const short* pair, int row, int lane) {
    float sum[TOKENS] = {};
    const uint4* down_row = (const uint4*)(down + (u64)row * INTERMEDIATE);
#pragma unroll 8
    for (int c = lane; c < INTERMEDIATE / 8; c += 32) {
        uint4 a = down_row[c];
#pragma unroll
        for (int t = 0; t < TOKENS; t++) sum[t] = dot8(a, ((const uint4*)(h + (u64)pair[t] * INTERMEDIATE))[c], sum[t]);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float whole = over_warp(sum[t]);
        if (lane == 0) out[(u64)pair[t] * HIDDEN + row] = narrow(whole);
    }
}

// What is logged of each execution: the tag before and behind it, and when it began and ended.
struct Entry {
    u64 before, behind, begin_ns, end_ns;
};

// Grid: (INTERMEDIATE / WARPS, experts). The tag is read before the weights ...
extern "C" __global__ void __launch_bounds__(32 * WARPS)
gate_up(const __grid_constant__ Work work, const char* slots, u64 stride, const bf16* x, bf16* h, Entry* log) {
    int e = blockIdx.y, lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    const char* slot = slots + work.slot[e] * stride;
    const bf16* gate = (const bf16*)slot;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        log[e].begin_ns = now();
        log[e].before = *(const volatile u64*)(slot + 6 * MATRIX);
    }
    if (row >= INTERMEDIATE) return;
    int pair = work.first_pair[e], end = work.first_pair[e + 1];
    for (; pair + TILE <= end; pair += TILE) gate_up_rows<TILE>(gate, gate + MATRIX, x, h, work.pair + pair, row, lane);
    for (; pair < end; pair++) gate_up_rows<1>(gate, gate + MATRIX, x, h, work.pair + pair, row, lane);
}

// Grid: (HIDDEN / WARPS, experts). ... and again behind the last of them.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
down(const __grid_constant__ Work work, const char* slots, u64 stride, const bf16* h, bf16* out, Entry* log) {
    int e = blockIdx.y, lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    const char* slot = slots + work.slot[e] * stride;
    const bf16* matrix = (const bf16*)slot + 2 * MATRIX;
    if (row < HIDDEN) {
        int pair = work.first_pair[e], end = work.first_pair[e + 1];
        for (; pair + TILE <= end; pair += TILE) down_rows<TILE>(matrix, h, out, work.pair + pair, row, lane);
        for (; pair < end; pair++) down_rows<1>(matrix, h, out, work.pair + pair, row, lane);
    }
    if (blockIdx.x == gridDim.x - 1) {
        __syncthreads();
        if (threadIdx.x == 0) {
            log[e].behind = *(const volatile u64*)(slot + 6 * MATRIX);
            log[e].end_ns = now();
        }
    }
}

// ---- dense

// residual[t] += sum over terms of gate[t, k] * added[t, k]; normed[t] = RMS norm of it, times weight. One block per token.
// `stamp` keeps when the first block began and when it ended.
extern "C" __global__ void __launch_bounds__(256)
add_norm(bf16* residual, const bf16* added, const float* gates, int terms, const bf16* weight, bf16* normed, u64* stamp) {
    __shared__ float partial[8];
    if (blockIdx.x == 0 && threadIdx.x == 0) stamp[0] = now();
    bf16* row = residual + (u64)blockIdx.x * HIDDEN;
    const bf16* terms_of = added + (u64)blockIdx.x * terms * HIDDEN;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < HIDDEN; i += blockDim.x) {
        float value = wide(row[i]);
        for (int k = 0; k < terms; k++) {
            float gate = gates ? gates[blockIdx.x * terms + k] : 1.0f;
            value = fmaf(gate, wide(terms_of[(u64)k * HIDDEN + i]), value);
        }
        bf16 stored = narrow(value);
        row[i] = stored;
        value = wide(stored);
        squares = fmaf(value, value, squares);
    }
    squares = over_warp(squares);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += partial[i];
    float scale = rsqrtf(sum / HIDDEN + 1e-6f);
    for (int i = threadIdx.x; i < HIDDEN; i += blockDim.x)
        normed[(u64)blockIdx.x * HIDDEN + i] = narrow(wide(row[i]) * scale * wide(weight[i]));
    if (blockIdx.x == 0 && threadIdx.x == 0) stamp[1] = now();
}

// Rotary embedding of queries and keys, and the keys and values into the cache. Grid: (tokens, HEADS + 2 * KV_HEADS).
// qkv [tokens, (HEADS + 2 * KV_HEADS) * HEAD_SIZE]; cache [sequences, KV_HEADS, context, HEAD_SIZE], each sequence's new
// tokens last.
extern "C" __global__ void
rotate_append(const bf16* qkv, bf16* queries, bf16* keys, bf16* values, int new_tokens, int context) {
    int token = blockIdx.x, head = blockIdx.y, i = threadIdx.x, half = HEAD_SIZE / 2;
    int sequence = token / new_tokens, place = token % new_tokens, position = context - new_tokens + place;
    const bf16* from = qkv + ((u64)token * (HEADS + 2 * KV_HEADS) + head) * HEAD_SIZE;
    if (head >= HEADS + KV_HEADS) {
        bf16* to = values + (((u64)sequence * KV_HEADS + head - HEADS - KV_HEADS) * context + position) * HEAD_SIZE;
        to[i] = from[i];
        to[i + half] = from[i + half];
        return;
    }
    float angle = position * exp2f(-(float)i / half * 19.931568569f);  // base 1,000,000
    float sine, cosine, a = wide(from[i]), b = wide(from[i + half]);
    sincosf(angle, &sine, &cosine);
    bf16* to = head < HEADS
        ? queries + (((u64)sequence * HEADS + head) * new_tokens + place) * HEAD_SIZE
        : keys + (((u64)sequence * KV_HEADS + head - HEADS) * context + position) * HEAD_SIZE;
    to[i] = narrow(a * cosine - b * sine);
    to[i + half] = narrow(b * cosine + a * sine);
}

// Softmax, top-k and renormalised gates of one token per block; clears what its experts will write. The last block to end
// tells the host: ids first, then the sequence number, straight into pinned memory.
extern "C" __global__ void __launch_bounds__(256)
choose(const bf16* logits, float* gates, bf16* out, int tokens, int* host_ids, volatile int* host_flag, int* counters,
       u64* stamp) {
    __shared__ float score[EXPERTS];
    int token = blockIdx.x;
    for (int e = threadIdx.x; e < EXPERTS; e += blockDim.x) score[e] = wide(logits[(u64)token * EXPERTS + e]);
    for (u64 i = threadIdx.x; i < (u64)TOP_K * HIDDEN / 8; i += blockDim.x)
        ((uint4*)(out + (u64)token * TOP_K * HIDDEN))[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    if (threadIdx.x < 32) {
        float best_of[TOP_K], sum = 0.0f, top = 0.0f;
        for (int k = 0; k < TOP_K; k++) {
            float best = -1e30f;
            int where = EXPERTS;
            for (int e = threadIdx.x; e < EXPERTS; e += 32)
                if (score[e] > best) { best = score[e]; where = e; }
            for (int step = 16; step; step >>= 1) {
                float other = __shfl_xor_sync(0xffffffffu, best, step);
                int other_where = __shfl_xor_sync(0xffffffffu, where, step);
                if (other > best || (other == best && other_where < where)) { best = other; where = other_where; }
            }
            if (k == 0) top = best;
            best_of[k] = __expf(best - top);
            sum += best_of[k];
            if (threadIdx.x == 0) { score[where] = -1e30f; host_ids[token * TOP_K + k] = where; }
            __syncwarp();
        }
        if (threadIdx.x == 0)
            for (int k = 0; k < TOP_K; k++) gates[token * TOP_K + k] = best_of[k] / sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        if (atomicAdd(&counters[1], 1) == tokens - 1) {
            counters[1] = 0;
            *stamp = now();
            __threadfence_system();
            *host_flag = ++counters[0];
        }
    }
}

// The next token of each sequence has been chosen: its ids to the host, and a digest of the residual stream to where all
// digests of a run are kept. Sums of integers have no order, so equal bits give equal digests. One block.
extern "C" __global__ void __launch_bounds__(256)
tell(const long long* ids, int count, const bf16* residual, int tokens, u64* digests, int* host_ids, volatile int* host_flag,
     int* counters, u64* stamp) {
    u64* digest = digests + counters[2];
    for (int i = threadIdx.x; i < count; i += blockDim.x) host_ids[i] = (int)ids[i];
    u64 sum = 0;
    for (int i = threadIdx.x; i < tokens * HIDDEN; i += blockDim.x) sum += residual[i] * (2654435761ull * i + 40503ull);
    atomicAdd(digest, sum);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        counters[2]++;
        *stamp = now();
        *host_flag = ++counters[0];
    }
}

// ---- for microbenchmarks: keep a stream busy for a while

extern "C" __global__ void busy(u64 ns) {
    u64 start = now();
    while (now() - start < ns);
}

// The GPU's clock, into pinned memory.
extern "C" __global__ void clock_out(volatile u64* host) { *host = now(); }
