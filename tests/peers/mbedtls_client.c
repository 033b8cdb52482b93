/* One HTTP request over TLS by Mbed TLS: mbedtls_client HOST PORT CA-FILE; without
 * words, only its version */
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <mbedtls/version.h>
#include <stdio.h>

static int failed(const char *what, int code) {
    fprintf(stderr, "%s: -0x%04x\n", what, (unsigned)-code);
    return 1;
}

int main(int count, char **words) {
    mbedtls_net_context stream;
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ssl_context tls;
    mbedtls_ssl_config config;
    mbedtls_x509_crt ca;
    unsigned char text[4096];
    int code;

    if (count == 1)
        return puts(MBEDTLS_VERSION_STRING) < 0;
    if (count != 4)
        return 2;
    mbedtls_net_init(&stream);
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random);
    mbedtls_ssl_init(&tls);
    mbedtls_ssl_config_init(&config);
    mbedtls_x509_crt_init(&ca);
    if ((code = mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0)))
        return failed("seed", code);
    if ((code = mbedtls_x509_crt_parse_file(&ca, words[3])))
        return failed("ca", code);
    if ((code = mbedtls_net_connect(&stream, "127.0.0.1", words[2], MBEDTLS_NET_PROTO_TCP)))
        return failed("connect", code);
    if ((code = mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT,
                                            MBEDTLS_SSL_TRANSPORT_STREAM,
                                            MBEDTLS_SSL_PRESET_DEFAULT)))
        return failed("defaults", code);
    mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_REQUIRED);
    mbedtls_ssl_conf_ca_chain(&config, &ca, NULL);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
    if ((code = mbedtls_ssl_setup(&tls, &config)))
        return failed("setup", code);
    if ((code = mbedtls_ssl_set_hostname(&tls, words[1])))
        return failed("host", code);
    mbedtls_ssl_set_bio(&tls, &stream, mbedtls_net_send, mbedtls_net_recv, NULL);
    while ((code = mbedtls_ssl_handshake(&tls)))
        if (code != MBEDTLS_ERR_SSL_WANT_READ && code != MBEDTLS_ERR_SSL_WANT_WRITE)
            return failed("handshake", code);
    int size = snprintf((char *)text, sizeof text, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", words[1]);
    if ((code = mbedtls_ssl_write(&tls, text, (size_t)size)) != size)
        return failed("write", code);
    while ((code = mbedtls_ssl_read(&tls, text, sizeof text)) > 0)
        fwrite(text, 1, (size_t)code, stdout);
    mbedtls_ssl_close_notify(&tls);
    mbedtls_net_free(&stream);
    return 0;
}
