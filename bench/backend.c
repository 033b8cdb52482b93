/* The backend of the benchmark: serves the modes of common.h on a Unix socket.
 * usage: backend PATH
 */
#define _GNU_SOURCE
#include "common.h"

struct peer {
    int fd;
    int started;
    size_t have;
    struct command command;
    uint64_t done;
    unsigned char first[65536];
};

static void finish(struct peer *peer)
{
    close(peer->fd);
    free(peer);
}

/* Read hello and command; say whether both are complete. What follows them stays unread. */
static int start(struct peer *peer)
{
    for (;;) {
        size_t want = 5;
        if (peer->have >= 5)
            want = 5 + (peer->first[3] << 8 | peer->first[4]) + sizeof(struct command);
        if (peer->have == want && want > 5) {
            memcpy(&peer->command, peer->first + want - sizeof(struct command),
                   sizeof(struct command));
            return 1;
        }
        ssize_t n = recv(peer->fd, peer->first + peer->have, want - peer->have, MSG_DONTWAIT);
        if (n <= 0)
            return n == 0 ? -1 : 0;
        peer->have += n;
    }
}

static void serve(struct peer *peer)
{
    static unsigned char buffer[CHUNK];
    ssize_t n;
    if (!peer->started) {
        int begun = start(peer);
        if (begun < 0) {
            finish(peer);
            return;
        }
        if (!begun)
            return;
        peer->started = 1;
        if (peer->command.mode == IDLE && send(peer->fd, "k", 1, MSG_NOSIGNAL) != 1)
            die("send");
    }
    switch (peer->command.mode) {
    case REPLY:
        if (send_pattern(peer->fd, &peer->done, peer->command.bytes))
            finish(peer);
        return;
    case UPLOAD:
        while ((n = recv(peer->fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0) {
            if (!is_pattern(buffer, peer->done, n)) {
                fprintf(stderr, "backend: wrong bytes at %llu\n", (unsigned long long)peer->done);
                exit(1);
            }
            peer->done += n;
            if (peer->done == peer->command.bytes) {
                if (send(peer->fd, "k", 1, MSG_NOSIGNAL) != 1)
                    die("send");
                finish(peer);
                return;
            }
        }
        break;
    default:
        while ((n = recv(peer->fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0)
            if (send(peer->fd, buffer, n, MSG_NOSIGNAL) != n)
                die("send");
    }
    if (n == 0)
        finish(peer);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path)
        return fprintf(stderr, "usage: backend PATH\n"), 2;
    strcpy(address.sun_path, argv[1]);
    unlink(argv[1]);
    int listening = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 4096))
        die(argv[1]);
    int poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr) {
                serve(events[i].data.ptr);
                continue;
            }
            int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0)
                continue;
            struct peer *peer = calloc(1, sizeof *peer);
            peer->fd = fd;
            event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
            event.data.ptr = peer;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
