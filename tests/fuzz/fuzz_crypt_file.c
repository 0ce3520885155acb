/* The reader of encrypted files: header and chunks. With the key of the corpus, so that it gets
 * behind the first chunk. */
#include <stdint.h>
#include <string.h>

#include "common/crypt_file.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int count(void *arg, const void *data, size_t size, struct error *err)
{
    (void)data, (void)err;
    *(size_t *)arg += size;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t bytes[CRYPT_KEY_BYTES_MIN] = "the key of the fuzzer's corpus";
    auto_crypt_key *key = crypt_key_new(bytes, sizeof bytes);
    char path[FUZZ_PATH_SIZE];
    autoclose int fd = fuzz_file(data, size, path);
    struct error err = ERROR_NONE;
    size_t plain = 0;

    if (crypt_decrypt_fd(&(struct crypt_file){fd, path}, key, NULL, count, &plain, &err) == 0 &&
        plain >= size)
        __builtin_trap(); /* each chunk is longer than what it holds */
    return 0;
}
