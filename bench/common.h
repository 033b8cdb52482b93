/* What the load generator and the backend agree on.
 *
 * A client sends its ClientHello (one record), then a Command; after that the two talk as the
 * command's mode says. Bulk bytes are 64-bit words that count up, so that a lost, doubled or
 * moved byte is noticed wherever it is.
 */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum mode {
    REPLY = 'r', /* the backend answers with `bytes` of pattern and closes */
    REPLY_RECORDS = 't', /* the same, in writes of TLS records, as servers make them */
    UPLOAD = 'u', /* the client sends `bytes` of pattern, the backend answers one byte and closes */
    UPLOAD_RECORDS = 'w', /* the same, in writes of TLS records, as browsers make them */
    ECHO = 'e', /* the backend sends back each message of MESSAGE bytes */
    IDLE = 'i', /* the backend answers one byte; then both wait */
    COUNTS = 'c', /* the backend answers how many connections each process has made, and closes */
};

struct command {
    uint64_t mode;
    uint64_t bytes;
};

#define MESSAGE 100
#define CHUNK (256 * 1024)
#define RECORD (16384 + 22) /* TLS 1.3 with AES-GCM: header, content type and tag (RFC 8446 5.2) */

static inline int is_reply(int mode)
{
    return mode == REPLY || mode == REPLY_RECORDS;
}

static inline int is_upload(int mode)
{
    return mode == UPLOAD || mode == UPLOAD_RECORDS;
}

/* Give the most that one write has. */
static inline uint64_t most_of(int mode)
{
    return mode == REPLY_RECORDS || mode == UPLOAD_RECORDS ? RECORD : CHUNK;
}

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Fill `size` bytes that stand at `offset` in the pattern; both are multiples of 8. */
static inline void pattern(uint64_t *words, uint64_t offset, size_t size)
{
    for (size_t i = 0; i < size / 8; i++)
        words[i] = offset / 8 + i;
}

/* Say whether `size` bytes are the pattern's from `offset` on, wherever they were cut. */
static inline int is_pattern(const unsigned char *data, uint64_t offset, size_t size)
{
    size_t i = 0;
    for (; i < size && (offset + i) % 8; i++) {
        uint64_t word = (offset + i) / 8;
        if (data[i] != ((unsigned char *)&word)[(offset + i) % 8])
            return 0;
    }
    for (; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, 8);
        if (word != (offset + i) / 8)
            return 0;
    }
    for (; i < size; i++) {
        uint64_t word = (offset + i) / 8;
        if (data[i] != ((unsigned char *)&word)[(offset + i) % 8])
            return 0;
    }
    return 1;
}

/* Send pattern from *sent up to `bytes`, at most `most` at once, until done (1), the socket is full
 * (0) or broken (-1). */
static inline int send_pattern(int fd, uint64_t *sent, uint64_t bytes, uint64_t most)
{
    static uint64_t chunk[CHUNK / 8 + 2];
    while (*sent < bytes) {
        uint64_t start = *sent & ~7ULL;
        uint64_t size = bytes - *sent < most ? bytes - *sent : most;
        pattern(chunk, start, (size + 15) & ~7ULL);
        ssize_t n = send(fd, (char *)chunk + (*sent - start), size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        *sent += n;
    }
    return 1;
}

#endif
