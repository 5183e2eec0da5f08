/* Load for a DNS server: a fixed number of queries outstanding, every answer looked at.
 *
 *     dns_load ADDRESS PORT QUERIES SIZE [-m MASKS] [-w OUTSTANDING] [-n COUNT] [-t SECONDS] [-q PER_SECOND] [-s FIRST]
 *
 * QUERIES: file of packets, SIZE bytes each, asked in turn from the FIRST on; the id is set here
 * MASKS: file of 64 bits a query: bit i = 192.0.2.(i + 1) is a possible right answer. Without: any answer will do
 * Ends after COUNT queries or SECONDS. One line of JSON is printed. An answer that did not come within a second is lost; one is
 * wrong when its question is not the query's, its code is not 0, or its first record is not an address that MASKS allows.
 * One socket, blocking, sends only when half of what may be outstanding is free: so that packets come in batches, as from a network
 * card that is busy, and this side costs less than the server's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, BUFFER = 1500, HEADER = 12, IDS = 65536 };

static uint8_t *queries, answers[BATCH][BUFFER];
static uint64_t *masks;
static size_t size, question, kinds;                      /* bytes of a query, of its question; how many different queries */
static uint32_t pending[IDS];                             /* by id: index of the query + 1, 0 = none under way */
static uint64_t sent, received, lost, wrong, empty, strange, codes[16];
static double longest;
static int waits = MSG_WAITFORONE;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void *whole(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    struct stat stat;
    if (!file || fstat(fileno(file), &stat)) { perror(path); exit(2); }
    void *data = malloc(stat.st_size);
    if (!data || fread(data, 1, stat.st_size, file) != (size_t)stat.st_size) { perror(path); exit(2); }
    fclose(file);
    *length = stat.st_size;
    return data;
}

/* The first record's address as a bit, 0 if there is none: owner (a pointer or labels), type, class, ttl, length, data. */
static uint64_t address(const uint8_t *packet, size_t length) {
    size_t at = HEADER + question;
    while (at < length && packet[at] && packet[at] < 0xc0) at += packet[at] + 1;
    if (at >= length) return 0;
    at += packet[at] ? 2 : 1;
    if (at + 14 > length || packet[at] || packet[at + 1] != 1 || memcmp(packet + at + 8, "\0\4\xc0\0\2", 5)) return 0;
    unsigned last = packet[at + 13];
    return last && last <= 64 ? 1ull << (last - 1) : 0;
}

static void look(const uint8_t *packet, size_t length) {
    if (length < HEADER) { strange++; return; }
    unsigned id = packet[0] << 8 | packet[1];
    if (!pending[id]) { strange++; return; }              /* nobody asked, asked once and answered twice, or later than a second */
    size_t which = pending[id] - 1;
    pending[id] = 0;
    received++;
    codes[packet[3] & 15]++;
    uint64_t found = length < HEADER + question ? 0 : address(packet, length);
    if (packet[6] == 0 && packet[7] == 0) empty++;
    if (masks && (packet[3] & 15 || !found || !(found & masks[which])
                  || memcmp(packet + HEADER, queries + which * size + HEADER, question))) wrong++;
}

static int opened(const char *host, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval second = {1, 0};
    int buffer = 4 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    if (fd < 0 || inet_pton(AF_INET, host, &to.sin_addr) != 1 || connect(fd, (void *)&to, sizeof to)) { perror(host); exit(2); }
    return fd;
}

static void give_up(unsigned *out) {
    for (unsigned id = 0; id < IDS; id++)
        if (pending[id]) { pending[id] = 0; lost++; }
    *out = 0;
}

static struct mmsghdr outgoing[BATCH], incoming[BATCH];
static struct iovec out_parts[BATCH], in_parts[BATCH];

static unsigned ask(int fd, size_t *next, unsigned many) {
    static uint8_t packets[BATCH][512];
    for (unsigned i = 0; i < many; i++, *next = *next + 1 == kinds ? 0 : *next + 1) {
        unsigned id = (sent + i) & 0xffff;
        memcpy(packets[i], queries + *next * size, size);
        packets[i][0] = id >> 8, packets[i][1] = id & 0xff;
        lost += pending[id] != 0;
        pending[id] = *next + 1;
        out_parts[i] = (struct iovec){packets[i], size};
        outgoing[i].msg_hdr = (struct msghdr){.msg_iov = out_parts + i, .msg_iovlen = 1};
    }
    for (unsigned done = 0; done < many;) {
        int now_done = sendmmsg(fd, outgoing + done, many - done, 0);
        if (now_done < 0 && errno != EINTR && errno != ECONNREFUSED) { perror("sendmmsg"); exit(2); }
        done += now_done > 0 ? now_done : 0;
    }
    sent += many;
    return many;
}

static int hear(int fd) {
    for (unsigned i = 0; i < BATCH; i++) {
        in_parts[i] = (struct iovec){answers[i], BUFFER};
        incoming[i].msg_hdr = (struct msghdr){.msg_iov = in_parts + i, .msg_iovlen = 1};
    }
    int many = recvmmsg(fd, incoming, BATCH, waits, NULL);
    for (int i = 0; i < many; i++) look(answers[i], incoming[i].msg_len);
    return many;
}

int main(int count, char **words) {
    unsigned window = 256, out = 0;
    uint64_t most = UINT64_MAX;
    double seconds = 1e9, rate = 0;
    size_t length, next = 0;
    if (count < 5) { fprintf(stderr, "usage: dns_load ADDRESS PORT QUERIES SIZE [options]\n"); return 2; }
    queries = whole(words[3], &length), size = atoi(words[4]), kinds = length / size;
    for (int option; (option = getopt(count - 4, words + 4, "m:w:n:t:q:s:b")) != -1;) switch (option) {
        case 'm': masks = whole(optarg, &length); break;
        case 'w': window = atoi(optarg); break;
        case 'n': most = strtoull(optarg, NULL, 10); break;
        case 't': seconds = atof(optarg); break;
        case 'q': rate = atof(optarg); break;
        case 's': next = strtoull(optarg, NULL, 10) % kinds; break;
        case 'b': waits = MSG_DONTWAIT; break;
        default: return 2;
    }
    for (question = 0; queries[HEADER + question]; question += queries[HEADER + question] + 1) {}
    question += 5;
    int fd = opened(words[1], atoi(words[2]));
    double start = now(), time = start, answered = start;
    while (sent < most && time - start < seconds) {
        unsigned room = window - out;
        if (rate && sent + room > (time - start) * rate) room = (time - start) * rate > sent ? (time - start) * rate - sent : 0;
        if (room > most - sent) room = most - sent;
        while (room >= (rate ? 1 : window / 2) || (room && sent + room == most)) {
            unsigned many = room < BATCH ? room : BATCH;
            out += ask(fd, &next, many), room -= many;
            if (sent == most) break;
        }
        if (rate && !out) { usleep(200); time = now(); answered = time; continue; }
        uint64_t before = received;
        int many = hear(fd);
        time = now();
        out -= received - before;
        if (many > 0) { if (time - answered > longest) longest = time - answered; answered = time; }
        else if (time - answered > 0.9) give_up(&out), answered = time;
    }
    double end = now();
    for (answered = end; out && now() - answered < 1;) {
        uint64_t before = received;
        if (hear(fd) > 0) answered = now();
        out -= received - before;
    }
    give_up(&out);
    printf("{\"sent\": %lu, \"received\": %lu, \"lost\": %lu, \"wrong\": %lu, \"empty\": %lu, \"strange\": %lu, \"seconds\": %.6f, "
           "\"longest\": %.4f, \"codes\": [", sent, received, lost, wrong, empty, strange, end - start, longest);
    for (int code = 0; code < 16; code++) printf("%s%lu", code ? ", " : "", codes[code]);
    printf("]}\n");
    return 0;
}
