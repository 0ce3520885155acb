/* What an S3 server answers. */
#include "services/exporter/targets/s3/answer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_s3_answer answer = {0};
    struct error err = ERROR_NONE;
    struct s3_error refusal;

    (void)s3_error_read((const char *)data, size, &refusal);
    if (s3_answer_read((const char *)data, size, &answer, &err) < 0)
        return 0;
    for (size_t i = 0; i < answer.part_count; i++) {
        if (answer.parts[i].number > 10000)
            abort();
    }
    return 0;
}
