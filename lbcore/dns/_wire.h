/* What `_wire` needs of C: datagrams many at a time, and the marks between readers of a view and whoever replaces it. */
#ifndef LBCORE_WIRE_H
#define LBCORE_WIRE_H
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef __linux__
/* One at a time where the kernel has no calls for many. */
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif
#define MSG_WAITFORONE 0
#define CLOCK_MONOTONIC_COARSE CLOCK_MONOTONIC
#define CLOCK_REALTIME_COARSE CLOCK_REALTIME
struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
static inline int recvmmsg(int fd, struct mmsghdr *messages, unsigned int n, int flags, struct timespec *timeout) {
    ssize_t size = recvmsg(fd, &messages[0].msg_hdr, flags);
    (void)n; (void)timeout;
    if (size < 0) return -1;
    messages[0].msg_len = (unsigned int)size;
    return 1;
}
static inline int sendmmsg(int fd, struct mmsghdr *messages, unsigned int n, int flags) {
    ssize_t size = sendmsg(fd, &messages[0].msg_hdr, flags);
    (void)n;
    if (size < 0) return -1;
    messages[0].msg_len = (unsigned int)size;
    return 1;
}
#endif

/* A reader's sequence is odd while it looks into a view. Entering, and the load that follows it, must not change places with the
 * replacement of the pointer and the look at the sequence on the other side: all four are sequentially consistent. */
static inline void lb_enter(uint64_t *sequence) { __atomic_add_fetch(sequence, 1, __ATOMIC_SEQ_CST); }
static inline void lb_leave(uint64_t *sequence) { __atomic_add_fetch(sequence, 1, __ATOMIC_RELEASE); }
static inline uint64_t lb_sequence(uint64_t *sequence) { return __atomic_load_n(sequence, __ATOMIC_SEQ_CST); }
static inline void *lb_current(void *const *pointer) { return __atomic_load_n(pointer, __ATOMIC_SEQ_CST); }
static inline void *lb_replace(void **pointer, void *other) { return __atomic_exchange_n(pointer, other, __ATOMIC_SEQ_CST); }

static inline int lb_errno(void) { return errno; }
static inline uint64_t lb_seconds(void) { struct timespec t; clock_gettime(CLOCK_REALTIME_COARSE, &t); return (uint64_t)t.tv_sec; }
static inline uint64_t lb_milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}
/* Never fragment and never ask for the path's MTU: answers are short, and forged "fragmentation needed" changes nothing (RFC 9715 §3).
 * PROBE also spares the kernel two look-ups per packet (5 % of an answer's cost). */
static inline void lb_tune(int fd, long wake_milliseconds) {
    struct timeval t = { wake_milliseconds / 1000, wake_milliseconds % 1000 * 1000 };
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
#ifdef IP_PMTUDISC_PROBE
    int probe = IP_PMTUDISC_PROBE;
    setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &probe, sizeof probe);
    probe = IPV6_PMTUDISC_PROBE;
    setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &probe, sizeof probe); /* fails on IPv4 sockets */
#endif
}
/* Give family 4 or 6 and the address in network order; 0 for anything else. */
static inline int lb_source(const struct sockaddr_storage *from, uint8_t address[16], uint16_t *port, uint32_t *scope) {
    memset(address, 0, 16);
    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *four = (const struct sockaddr_in *)from;
        memcpy(address, &four->sin_addr, 4);
        *port = ntohs(four->sin_port), *scope = 0;
        return 4;
    }
    if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)from;
        memcpy(address, &six->sin6_addr, 16);
        *port = ntohs(six->sin6_port), *scope = six->sin6_scope_id;
        return 6;
    }
    return 0;
}
#endif
