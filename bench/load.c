/* The load of the benchmark: COUNT connections, FLIGHT at a time, over one mode of common.h.
 * usage: load PORT HELLO-FILE MODE COUNT FLIGHT BYTES
 * In mode e, BYTES is the number of round trips of each connection, after one that is not counted.
 * In mode i, it prints "ready" and holds the connections until standard input ends. Prints seconds,
 * its own CPU seconds, and p50 and p99 of the latency (microseconds: of a round trip in mode e,
 * else of a connection). Any wrong or missing byte is an error.
 */
#define _GNU_SOURCE
#include "common.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <time.h>

struct client {
    int fd;
    int sent_all;
    uint64_t sent, received, begun, rounds;
};

static unsigned char first[65536];
static size_t first_size;
static struct sockaddr_in address = {.sin_family = AF_INET};
static int poller, mode;
static uint64_t bytes, started, finished, count, samples, most_samples;
static uint32_t *latency;
static struct client *clients;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static void wrong(const char *what, struct client *client)
{
    fprintf(stderr, "load: %s after %llu bytes\n", what, (unsigned long long)client->received);
    exit(1);
}

static void sample(struct client *client)
{
    if (samples < most_samples)
        latency[samples++] = (now() - client->begun) / 1000;
    client->begun = now();
}

static void ask(struct client *client)
{
    static uint64_t message[MESSAGE / 8 + 1];
    pattern(message, 0, sizeof message);
    client->received = 0;
    if (send(client->fd, message, MESSAGE, MSG_NOSIGNAL) != MESSAGE)
        die("send");
}

/* Held connections leave the port numbers of the usual address to the others. */
static void from_elsewhere(int fd)
{
    int yes = 1;
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&source, sizeof source))
        die("bind");
}

static void begin(struct client *client)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = client};
    memset(client, 0, sizeof *client);
    client->begun = now();
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (client->fd < 0)
        die("socket");
    if (mode == IDLE)
        from_elsewhere(client->fd);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    if (send(client->fd, first, first_size, MSG_NOSIGNAL) != (ssize_t)first_size)
        die("send");
    started++;
    if (is_upload(mode))
        event.events |= EPOLLOUT;
    if (mode == ECHO) {
        int yes = 1;
        setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        ask(client);
    }
    epoll_ctl(poller, EPOLL_CTL_ADD, client->fd, &event);
}

static void end(struct client *client)
{
    close(client->fd);
    finished++;
    if (mode != ECHO)
        sample(client);
    if (started < count)
        begin(client);
}

static void serve(struct client *client)
{
    static unsigned char buffer[CHUNK];
    ssize_t n;
    if (is_upload(mode) && !client->sent_all) {
        client->sent_all = send_pattern(client->fd, &client->sent, bytes, most_of(mode));
        if (client->sent_all < 0)
            die("send");
    }
    while ((n = recv(client->fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0) {
        if ((is_reply(mode) || mode == ECHO) && !is_pattern(buffer, client->received, n))
            wrong("wrong bytes", client);
        client->received += n;
        if (mode == IDLE) {
            finished++;
            if (started < count)
                begin(&clients[started]);
            return;
        }
        if (mode == ECHO && client->received == MESSAGE) {
            if (client->rounds)
                sample(client);
            else
                client->begun = now();
            if (client->rounds++ == bytes) {
                end(client);
                return;
            }
            ask(client);
        }
    }
    if (n < 0) {
        if (errno != EAGAIN)
            wrong("reset", client);
        return;
    }
    if (client->received != (is_upload(mode) ? 1 : bytes) || mode == ECHO || mode == IDLE)
        wrong("ended early", client);
    end(client);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc != 7)
        return fprintf(stderr, "usage: load PORT HELLO-FILE MODE COUNT FLIGHT BYTES\n"), 2;
    FILE *file = fopen(argv[2], "rb");
    if (!file)
        die(argv[2]);
    first_size = fread(first, 1, sizeof first - sizeof(struct command), file);
    fclose(file);
    mode = argv[3][0];
    count = strtoull(argv[4], NULL, 10);
    uint64_t flight = strtoull(argv[5], NULL, 10);
    bytes = strtoull(argv[6], NULL, 10);
    struct command command = {mode, bytes};
    memcpy(first + first_size, &command, sizeof command);
    first_size += sizeof command;
    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    most_samples = mode == ECHO ? count * bytes : count;
    latency = calloc(most_samples + 1, sizeof *latency);
    poller = epoll_create1(0);
    if (flight > count)
        flight = count;
    clients = calloc(mode == IDLE ? count : flight, sizeof *clients);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    uint64_t start = now();
    for (uint64_t i = 0; i < flight; i++)
        begin(&clients[i]);
    while (finished < count) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, 60000);
        if (ready <= 0)
            return fprintf(stderr, "load: nothing for a minute\n"), 1;
        for (int i = 0; i < ready; i++)
            serve(events[i].data.ptr);
    }
    uint64_t end = now();
    if (mode == IDLE) {
        puts("ready");
        fflush(stdout);
        while (getchar() != EOF)
            ;
    }
    qsort(latency, samples, sizeof *latency, compare);
    struct timespec cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("{\"seconds\": %.6f, \"load\": %.6f, \"p50\": %u, \"p99\": %u}\n", (end - start) / 1e9,
           cpu.tv_sec + cpu.tv_nsec / 1e9, latency[samples / 2], latency[samples * 99 / 100]);
    return 0;
}
