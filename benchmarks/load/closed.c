/* Closed-loop HTTP load: CONNECTIONS clients, each sends its next request when the answer to the last has come whole.
 *
 *   closed ADDRESS CONNECTIONS SECONDS REQUEST_FILE      ADDRESS: a Unix socket's path, or HOST:PORT with a numeric host
 *
 * In C so that the client takes little of the two cores that it shares with the server. Prints one JSON object: answers
 * per second, latencies in microseconds, and how many answers were not 200. Ends with status 1 when a connection is
 * lost, because a server that gives up is not to be timed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER = 8 << 20, MOST = 64 << 20, EVENTS = 64 };

struct client {
    int fd;
    size_t sent, got, whole; /* whole: the answer's length once its head has come, 0 before */
    int chunked, writing;
    double since;
    char *answer;
};

static char *request;
static size_t request_length;
static float *latencies;
static size_t answers, refused, room;

static void fail(const char *what) {
    fprintf(stderr, "closed: %s: %s\n", what, errno ? strerror(errno) : "ended");
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int opened(const char *address) {
    const char *colon = strrchr(address, ':');
    int fd, one = 1;
    if (colon && address[0] != '/') {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
        char host[64] = {0};
        memcpy(host, address, (size_t)(colon - address) < 63 ? (size_t)(colon - address) : 63);
        if (inet_pton(AF_INET, host, &to.sin_addr) != 1) fail("address");
        if ((fd = socket(AF_INET, SOCK_STREAM, 0)) < 0 || connect(fd, (void *)&to, sizeof to)) fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    } else {
        struct sockaddr_un to = {.sun_family = AF_UNIX};
        strncpy(to.sun_path, address, sizeof to.sun_path - 1);
        if ((fd = socket(AF_UNIX, SOCK_STREAM, 0)) < 0 || connect(fd, (void *)&to, sizeof to)) fail("connect");
    }
    return fd;
}

static void ask(struct client *c, int epoll) {
    while (c->sent < request_length) {
        ssize_t n = send(c->fd, request + c->sent, request_length - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) fail("send");
        c->sent += (size_t)n;
    }
    int rest = c->sent < request_length;
    if (rest == c->writing) return;
    struct epoll_event e = {.events = EPOLLIN | (rest ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
    c->writing = rest;
}

static void begin(struct client *c, int epoll) {
    c->sent = c->got = c->whole = 0;
    c->chunked = 0;
    c->since = now();
    ask(c, epoll);
}

/* Whether the whole answer is here. */
static int complete(struct client *c) {
    if (!c->whole && !c->chunked) {
        c->answer[c->got] = 0;
        char *end = strstr(c->answer, "\r\n\r\n");
        if (!end) return 0;
        *end = 0;
        char *length = strcasestr(c->answer, "\r\ncontent-length:");
        c->chunked = !length && strcasestr(c->answer, "\r\ntransfer-encoding: chunked");
        if (length) c->whole = (size_t)(end + 4 - c->answer) + strtoul(length + 17, NULL, 10);
        *end = '\r';
        if (!length && !c->chunked) fail("an answer without a length");
    }
    if (c->chunked) return c->got >= 5 && !memcmp(c->answer + c->got - 5, "0\r\n\r\n", 5);
    return c->got >= c->whole;
}

static void hear(struct client *c) {
    ssize_t n = recv(c->fd, c->answer + c->got, ANSWER - c->got - 1, MSG_DONTWAIT);
    if (n == 0) errno = 0;
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN) return;
        fail("recv");
    }
    c->got += (size_t)n;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: closed ADDRESS CONNECTIONS SECONDS REQUEST_FILE\n");
        return 2;
    }
    int count = atoi(argv[2]), epoll = epoll_create1(0);
    FILE *file = fopen(argv[4], "rb");
    if (!file) fail(argv[4]);
    request = malloc(MOST);
    request_length = fread(request, 1, MOST, file);
    room = 1 << 16;
    latencies = malloc(room * sizeof *latencies);
    struct client *clients = calloc((size_t)count, sizeof *clients);
    for (int i = 0; i < count; i++) {
        clients[i].fd = opened(argv[1]);
        clients[i].answer = malloc(ANSWER);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, clients[i].fd, &e);
    }
    double start = now(), end = start + atof(argv[3]), t = start;
    for (int i = 0; i < count; i++) begin(&clients[i], epoll);
    while (t < end || !answers) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, 30000);
        if (n <= 0) fail("no answer within 30 s");
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) ask(c, epoll);
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            hear(c);
            if (!complete(c)) continue;
            t = now();
            if (memcmp(c->answer + 8, " 200", 4)) refused++;
            if (answers == room) latencies = realloc(latencies, (room *= 2) * sizeof *latencies);
            latencies[answers++] = (float)((t - c->since) * 1e6);
            begin(c, epoll);
        }
    }
    qsort(latencies, answers, sizeof *latencies, by_value);
    printf("{\"answers\": %zu, \"per_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"refused\": %zu}\n", answers,
           (double)answers / (t - start), latencies[answers / 2], latencies[answers * 99 / 100], refused);
    return 0;
}
