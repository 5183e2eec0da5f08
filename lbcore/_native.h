/* What Cython cannot say: relaxed atomics on single words, and the vector scan over one score row.
 *
 * Readers take no lock, so every word that another thread or process may write is read and written by these.
 * On x86-64 and arm64 a relaxed load or store is a plain move.
 */
#ifndef LBCORE_NATIVE_H
#define LBCORE_NATIVE_H
#include <stdint.h>
#include <string.h>

#define LB_RELAXED(type, name)                                                                                  \
    static inline type lb_load_##name(const type *p) { type v; __atomic_load(p, &v, __ATOMIC_RELAXED); return v; } \
    static inline void lb_store_##name(type *p, type v) { __atomic_store(p, &v, __ATOMIC_RELAXED); }
LB_RELAXED(uint8_t, u8)
LB_RELAXED(uint16_t, u16)
LB_RELAXED(uint32_t, u32)
LB_RELAXED(uint64_t, u64)
LB_RELAXED(float, f32)
LB_RELAXED(double, f64)

/* A mark must not be seen before what it points to. */
static inline void lb_mark(uint8_t *p) { __atomic_store_n(p, 1, __ATOMIC_RELEASE); }

static inline uint64_t lb_set_bits(uint64_t *p, uint64_t bits) { return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST); }
static inline uint64_t lb_clear_bits(uint64_t *p, uint64_t bits) { return __atomic_fetch_and(p, ~bits, __ATOMIC_SEQ_CST); }
static inline uint64_t lb_take(uint64_t *p) { return __atomic_exchange_n(p, 0, __ATOMIC_SEQ_CST); }
static inline uint32_t lb_set_bits32(uint32_t *p, uint32_t bits) { return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST); }
static inline uint32_t lb_clear_bits32(uint32_t *p, uint32_t bits) { return __atomic_fetch_and(p, ~bits, __ATOMIC_SEQ_CST); }
/* Replace all bits but those of `kept`, which another thread may be changing. */
static inline void lb_replace_but(uint32_t *p, uint32_t bits, uint32_t kept) {
    uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, bits | (old & kept), 1, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
}
/* Longer than any store that is under way in a running thread. */
static inline void lb_pause(void) { for (volatile int i = 0; i < 20000; i++) {} }
/* Make the word at `p` at most `v`; what is read afterwards is not older than that. */
static inline void lb_lower(uint64_t *p, uint64_t v) {
    uint64_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, 1, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    if (v < old) __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
static inline uint64_t lb_add(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }
static inline int lb_swap_if(int64_t *p, int64_t expected, int64_t wanted) {
    return __atomic_compare_exchange_n(p, &expected, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline void lb_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline uint32_t lb_lowest_bit(uint64_t word) { return (uint32_t)__builtin_ctzll(word); }

/* One (group, region): 32 bytes, half a cache line. In `ewma` P, R, sp, sm hold the instant's base, mean, weight, count. */
typedef struct { float x, P, R, mu0, P0, sp, sm; uint32_t t; } lb_cell;

/* A cell in zeroed memory is whole when it has a `t` or a `P0`: these are stored last and read first. */
static inline void lb_load_cell(const lb_cell *c, lb_cell *out) {
    __atomic_load(&c->t, &out->t, __ATOMIC_ACQUIRE); __atomic_load(&c->P0, &out->P0, __ATOMIC_ACQUIRE);
    out->x = lb_load_f32(&c->x); out->P = lb_load_f32(&c->P); out->R = lb_load_f32(&c->R); out->mu0 = lb_load_f32(&c->mu0);
    out->sp = lb_load_f32(&c->sp); out->sm = lb_load_f32(&c->sm);
}
static inline void lb_store_cell(lb_cell *c, const lb_cell *v) {
    lb_cell own = *v;
    lb_store_f32(&c->sp, v->sp); lb_store_f32(&c->sm, v->sm);
    lb_store_f32(&c->x, v->x); lb_store_f32(&c->P, v->P); lb_store_f32(&c->R, v->R); lb_store_f32(&c->mu0, v->mu0);
    __atomic_store(&c->P0, &own.P0, __ATOMIC_RELEASE); __atomic_store(&c->t, &own.t, __ATOMIC_RELEASE);
}
static inline uint32_t lb_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float lb_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

/* ---- scan: index of the smallest key whose bit is set in `mask`, ties to the lowest index; LB_NONE for an empty mask.
 * Keys are non-negative floats as integers (their order is the same), sign bit = excluded, so one unsigned minimum does all.
 * `stride` is a multiple of 8. The vector loads race with relaxed stores by design: aligned 4-byte lanes do not tear. */
#define LB_NONE 0xFFFFFFFFu
#if defined(__clang__) || defined(__GNUC__)
#define LB_UNSYNCHRONISED __attribute__((no_sanitize("thread")))
#else
#define LB_UNSYNCHRONISED
#endif

static inline uint32_t lb_scan_scalar(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    uint32_t best = LB_NONE, where = LB_NONE;
    for (uint32_t base = 0; base < stride; base += 64)
        for (uint64_t m = lb_load_u64(&mask[base >> 6]); m; m &= m - 1) {
            uint32_t i = base + (uint32_t)__builtin_ctzll(m), key = lb_load_u32(&keys[i]);
            if (key < best) { best = key; where = i; }
        }
    return where;
}

#if defined(__x86_64__) && !defined(LB_NO_VECTOR)
#include <immintrin.h>
/* Two passes: the minimum alone (its chain is one instruction long), then where it first stands. */
LB_UNSYNCHRONISED __attribute__((target("avx512f"))) static inline uint32_t
lb_scan_avx512(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    __m512i a = _mm512_set1_epi32(-1), b = a, c = a, d = a;
    uint32_t base = 0;
    for (; base + 64 <= stride; base += 64) {
        uint64_t m = mask[base >> 6];
        a = _mm512_mask_min_epu32(a, (__mmask16)m, a, _mm512_loadu_si512(keys + base));
        b = _mm512_mask_min_epu32(b, (__mmask16)(m >> 16), b, _mm512_loadu_si512(keys + base + 16));
        c = _mm512_mask_min_epu32(c, (__mmask16)(m >> 32), c, _mm512_loadu_si512(keys + base + 32));
        d = _mm512_mask_min_epu32(d, (__mmask16)(m >> 48), d, _mm512_loadu_si512(keys + base + 48));
    }
    for (; base < stride; base += 16) {
        __mmask16 m = (__mmask16)(mask[base >> 6] >> (base & 63));
        a = _mm512_mask_min_epu32(a, m, a, _mm512_maskz_loadu_epi32(m, keys + base));
    }
    uint32_t low = _mm512_reduce_min_epu32(_mm512_min_epu32(_mm512_min_epu32(a, b), _mm512_min_epu32(c, d)));
    for (base = 0; low != LB_NONE && base < stride; base += 16) {
        __mmask16 m = (__mmask16)(mask[base >> 6] >> (base & 63));
        m = _mm512_mask_cmpeq_epi32_mask(m, _mm512_maskz_loadu_epi32(m, keys + base), _mm512_set1_epi32((int)low));
        if (m) return base + (uint32_t)__builtin_ctz(m);
    }
    return LB_NONE; /* an empty mask, or a key that changed between the passes: the scalar scan tells */
}

LB_UNSYNCHRONISED __attribute__((target("avx2"))) static inline __m256i
lb_masked8(const uint32_t *keys, const uint64_t *mask, uint32_t base) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i byte = _mm256_set1_epi32((int)((mask[base >> 6] >> (base & 63)) & 0xFF));
    __m256i out = _mm256_cmpeq_epi32(_mm256_and_si256(byte, bit), _mm256_setzero_si256());
    return _mm256_or_si256(_mm256_loadu_si256((const __m256i *)(keys + base)), out);
}

LB_UNSYNCHRONISED __attribute__((target("avx2"))) static inline uint32_t
lb_scan_avx2(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    __m256i best = _mm256_set1_epi32(-1);
    for (uint32_t base = 0; base < stride; base += 8) best = _mm256_min_epu32(best, lb_masked8(keys, mask, base));
    __m128i half = _mm_min_epu32(_mm256_castsi256_si128(best), _mm256_extracti128_si256(best, 1));
    half = _mm_min_epu32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_min_epu32(half, _mm_shuffle_epi32(half, 0xB1));
    uint32_t low = (uint32_t)_mm_cvtsi128_si32(half);
    for (uint32_t base = 0; low != LB_NONE && base < stride; base += 8) {
        __m256i same = _mm256_cmpeq_epi32(lb_masked8(keys, mask, base), _mm256_set1_epi32((int)low));
        int hit = _mm256_movemask_ps(_mm256_castsi256_ps(same));
        if (hit) return base + (uint32_t)__builtin_ctz((unsigned)hit);
    }
    return LB_NONE;
}

/* 0 scalar, 1 AVX2, 2 AVX-512: set once at import, before any other thread can scan. */
static int lb_vector_level = 0;
static inline void lb_detect_vectors(void) {
    __builtin_cpu_init();
    lb_vector_level = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
}
static inline uint32_t lb_scan(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    uint32_t found = LB_NONE;
    if (lb_vector_level == 2) found = lb_scan_avx512(keys, mask, stride);
    else if (lb_vector_level == 1) found = lb_scan_avx2(keys, mask, stride);
    return found != LB_NONE ? found : lb_scan_scalar(keys, mask, stride);
}
static inline void lb_limit_vectors(int level) {
    lb_detect_vectors();
    if (level < lb_vector_level) lb_vector_level = level;
}
#else
static int lb_vector_level = 0;
static inline void lb_detect_vectors(void) {}
static inline void lb_limit_vectors(int level) { (void)level; }
static inline uint32_t lb_scan(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    return lb_scan_scalar(keys, mask, stride);
}
#endif
#endif
