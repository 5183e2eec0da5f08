/* The kernel's share of a DNS server: what comes in goes out again as a response, 16 packets at a time.
 *
 *     dns_floor ADDRESS PORT [PMTUDISC]
 *
 * PMTUDISC: value for IP_MTU_DISCOVER; 3 (IP_PMTUDISC_PROBE) saves looking up the path's MTU and making up an id for each packet
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { WIDTH = 16, BUFFER = 4096 };

int main(int count, char **words) {
    static struct mmsghdr messages[WIDTH];
    static struct sockaddr_in from[WIDTH];
    static struct iovec parts[WIDTH];
    static uint8_t packets[WIDTH][BUFFER];
    if (count < 3) { fprintf(stderr, "usage: dns_floor ADDRESS PORT [PMTUDISC]\n"); return 2; }
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[2]))};
    int fd = socket(AF_INET, SOCK_DGRAM, 0), discover = count > 3 ? atoi(words[3]) : -1;
    if (discover >= 0 && setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &discover, sizeof discover)) { perror(words[3]); return 2; }
    if (inet_pton(AF_INET, words[1], &here.sin_addr) != 1 || bind(fd, (void *)&here, sizeof here)) { perror(words[1]); return 2; }
    for (int i = 0; i < WIDTH; i++) {
        parts[i].iov_base = packets[i];
        messages[i].msg_hdr = (struct msghdr){.msg_iov = parts + i, .msg_iovlen = 1, .msg_name = from + i};
    }
    for (;;) {
        for (int i = 0; i < WIDTH; i++) parts[i].iov_len = BUFFER, messages[i].msg_hdr.msg_namelen = sizeof *from;
        int many = recvmmsg(fd, messages, WIDTH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < many; i++) {
            packets[i][2] |= 0x80;
            parts[i].iov_len = messages[i].msg_len;
        }
        for (int done = 0, now; done < many; done += now)
            if ((now = sendmmsg(fd, messages + done, many - done, 0)) <= 0) break;
    }
}
