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

static inline uint64_t lb_set_bits(uint64_t *p, uint64_t bits) { return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST); }
static inline uint64_t lb_clear_bits(uint64_t *p, uint64_t bits) { return __atomic_fetch_and(p, ~bits, __ATOMIC_SEQ_CST); }
static inline uint64_t lb_take(uint64_t *p) { return __atomic_exchange_n(p, 0, __ATOMIC_SEQ_CST); }
static inline uint64_t lb_add(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }
static inline int lb_swap_if(int64_t *p, int64_t expected, int64_t wanted) {
    return __atomic_compare_exchange_n(p, &expected, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline void lb_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline uint32_t lb_lowest_bit(uint64_t word) { return (uint32_t)__builtin_ctzll(word); }

/* One (group, region): 32 bytes, half a cache line. In `ewma` P, R, sp, sm hold the instant's base, mean, weight, count. */
typedef struct { float x, P, R, mu0, P0, sp, sm; uint32_t t; } lb_cell;

static inline void lb_load_cell(const lb_cell *c, lb_cell *out) {
    out->x = lb_load_f32(&c->x); out->P = lb_load_f32(&c->P); out->R = lb_load_f32(&c->R); out->mu0 = lb_load_f32(&c->mu0);
    out->P0 = lb_load_f32(&c->P0); out->sp = lb_load_f32(&c->sp); out->sm = lb_load_f32(&c->sm); out->t = lb_load_u32(&c->t);
}
static inline void lb_store_cell(lb_cell *c, const lb_cell *v) {
    lb_store_f32(&c->x, v->x); lb_store_f32(&c->P, v->P); lb_store_f32(&c->R, v->R); lb_store_f32(&c->mu0, v->mu0);
    lb_store_f32(&c->P0, v->P0); lb_store_f32(&c->sp, v->sp); lb_store_f32(&c->sm, v->sm); lb_store_u32(&c->t, v->t);
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
/* Lowest (key, block * lanes + lane) over the lanes. */
static inline uint32_t lb_lowest(const uint32_t *key, const uint32_t *block, uint32_t lanes) {
    uint32_t best = LB_NONE, where = LB_NONE;
    for (uint32_t l = 0; l < lanes; l++) {
        uint32_t at = block[l] * lanes + l;
        if (block[l] != LB_NONE && (key[l] < best || (key[l] == best && at < where))) { best = key[l]; where = at; }
    }
    return where;
}

LB_UNSYNCHRONISED __attribute__((target("avx512f"))) static inline uint32_t
lb_scan_avx512(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    __m512i best = _mm512_set1_epi32(-1), block = _mm512_set1_epi32(-1);
    for (uint32_t base = 0; base < stride; base += 16) {
        __mmask16 m = (__mmask16)(mask[base >> 6] >> (base & 63));
        __m512i key = _mm512_maskz_loadu_epi32(m, keys + base);
        m = _mm512_mask_cmplt_epu32_mask(m, key, best);
        best = _mm512_mask_mov_epi32(best, m, key);
        block = _mm512_mask_mov_epi32(block, m, _mm512_set1_epi32((int)(base >> 4)));
    }
    uint32_t low = _mm512_reduce_min_epu32(best);
    __mmask16 hit = _mm512_cmpeq_epi32_mask(best, _mm512_set1_epi32((int)low));
    hit &= _mm512_cmpneq_epi32_mask(block, _mm512_set1_epi32(-1));
    if (!hit) return LB_NONE;
    uint32_t at_block = _mm512_mask_reduce_min_epu32(hit, block);
    hit &= _mm512_cmpeq_epi32_mask(block, _mm512_set1_epi32((int)at_block));
    return at_block * 16 + (uint32_t)__builtin_ctz(hit);
}

LB_UNSYNCHRONISED __attribute__((target("avx2"))) static inline uint32_t
lb_scan_avx2(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), sign = _mm256_set1_epi32((int)0x80000000u);
    __m256i best = _mm256_set1_epi32(0x7FFFFFFF), block = _mm256_set1_epi32(-1); /* signed order of key ^ sign */
    for (uint32_t base = 0; base < stride; base += 8) {
        int byte = (int)((mask[base >> 6] >> (base & 63)) & 0xFF);
        __m256i in = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(byte), bit), bit);
        __m256i key = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(keys + base)), sign);
        __m256i less = _mm256_and_si256(in, _mm256_cmpgt_epi32(best, key));
        best = _mm256_blendv_epi8(best, key, less);
        block = _mm256_blendv_epi8(block, _mm256_set1_epi32((int)(base >> 3)), less);
    }
    uint32_t k[8], b[8];
    _mm256_storeu_si256((__m256i *)k, _mm256_xor_si256(best, sign));
    _mm256_storeu_si256((__m256i *)b, block);
    return lb_lowest(k, b, 8);
}

/* 0 scalar, 1 AVX2, 2 AVX-512: set once at import, before any other thread can scan. */
static int lb_vector_level = 0;
static inline void lb_detect_vectors(void) {
    __builtin_cpu_init();
    lb_vector_level = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
}
static inline uint32_t lb_scan(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    if (lb_vector_level == 2) return lb_scan_avx512(keys, mask, stride);
    if (lb_vector_level == 1) return lb_scan_avx2(keys, mask, stride);
    return lb_scan_scalar(keys, mask, stride);
}
static inline void lb_limit_vectors(int level) { if (level < lb_vector_level) lb_vector_level = level; }
#else
static int lb_vector_level = 0;
static inline void lb_detect_vectors(void) {}
static inline void lb_limit_vectors(int level) { (void)level; }
static inline uint32_t lb_scan(const uint32_t *keys, const uint64_t *mask, uint32_t stride) {
    return lb_scan_scalar(keys, mask, stride);
}
#endif
#endif
