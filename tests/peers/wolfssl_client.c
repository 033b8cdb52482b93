/* One HTTP request over TLS by wolfSSL: wolfssl_client HOST PORT CA-FILE; without
 * words, only its version */
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int count, char **words) {
    char text[4096];
    int size;

    if (count == 1)
        return puts(wolfSSL_lib_version()) < 0;
    if (count != 4)
        return 2;
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[2]))};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int stream = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(stream, (struct sockaddr *)&where, sizeof where))
        return 1;
    wolfSSL_Init();
    WOLFSSL_CTX *context = wolfSSL_CTX_new(wolfSSLv23_client_method());
    if (wolfSSL_CTX_load_verify_locations(context, words[3], NULL) != SSL_SUCCESS)
        return 3;
    WOLFSSL *tls = wolfSSL_new(context);
    wolfSSL_UseSNI(tls, WOLFSSL_SNI_HOST_NAME, words[1], (unsigned short)strlen(words[1]));
    wolfSSL_check_domain_name(tls, words[1]);
    wolfSSL_set_fd(tls, stream);
    if (wolfSSL_connect(tls) != SSL_SUCCESS) {
        fprintf(stderr, "handshake: %d\n", wolfSSL_get_error(tls, 0));
        return 4;
    }
    size = snprintf(text, sizeof text, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", words[1]);
    if (wolfSSL_write(tls, text, size) != size)
        return 5;
    while ((size = wolfSSL_read(tls, text, sizeof text)) > 0)
        fwrite(text, 1, (size_t)size, stdout);
    return 0;
}
