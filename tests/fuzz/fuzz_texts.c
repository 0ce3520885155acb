/* Small texts from settings, requests and names: addresses, numbers, durations, sizes, trace ids,
 * file names, paths, bandwidth profiles, and what makes text fit for JSON, XML and URLs. The first
 * byte says which reader gets the rest. Names are not resolved here. */
#include <assert.h>
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>

#include "common/address.h"
#include "common/autos.h"
#include "common/id.h"
#include "common/json.h"
#include "common/parse.h"
#include "common/paths.h"
#include "common/strbuf.h"
#include "common/time_window.h"
#include "common/week.h"
#include "services/exporter/engine/rate_profile.h"

#define TEXT_BYTES_MAX 8192

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* In front of the library's: no fuzzer asks a name server. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **out)
{
    union {
        void *symbol;
        int (*call)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    } real = {dlsym(RTLD_NEXT, "getaddrinfo")};
    struct addrinfo numeric = *hints;

    numeric.ai_flags |= AI_NUMERICHOST;
    return real.call(node, service, &numeric, out);
}

static void read_address(const char *text)
{
    struct address address;
    struct error err = ERROR_NONE;

    if (address_parse("a", text, &address, &err) < 0)
        return;
    assert(address.size > 0 && address.size <= sizeof address.storage);
    if (address_is_loopback((const struct sockaddr *)&address.storage))
        assert(address_is_private((const struct sockaddr *)&address.storage));
}

static void read_numbers(const char *text)
{
    struct error errs[5] = {0};
    uint64_t u64 = 0;
    uint32_t u32 = 0;
    int64_t ms = 0;
    bool yes;

    if (parse_u64("n", text, 5, 1000, &u64, &errs[0]) == 0)
        assert(u64 >= 5 && u64 <= 1000);
    if (parse_u32("n", text, 0, 65535, &u32, &errs[1]) == 0)
        assert(u32 <= 65535);
    if (parse_duration_ms("d", text, 100, 600000, &ms, &errs[2]) == 0)
        assert(ms >= 100 && ms <= 600000);
    if (parse_size_bytes("s", text, 1, GIB, &u64, &errs[3]) == 0)
        assert(u64 >= 1 && u64 <= GIB);
    (void)!parse_bool("b", text, &yes, &errs[4]);
}

static void read_trace(const char *text)
{
    char id[33];

    if (traceparent_trace_id(text, id))
        assert(strlen(id) == 32);
}

static void read_name(const char *text)
{
    autofree char *name = vm_file_name(text);

    assert(name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL && strlen(name) <= 200);
}

static void read_path(const char *text)
{
    static char base[] = "/usr/share";
    static char *items[] = {base};
    static const struct config_list bases = {items, 1};
    autofree char *path = NULL;
    struct error err = ERROR_NONE;

    if (path_confine(&bases, text, &path, &err) < 0)
        return;
    assert(strncmp(path, base, strlen(base)) == 0 && strstr(path, "/../") == NULL);
}

static void read_profile(const char *text)
{
    struct rate_profile profile = {0};
    struct error err = ERROR_NONE;

    if (rate_profile_parse(text, &profile, &err) < 0)
        return;
    assert(profile.days > 0 && profile.days < 128 && profile.from < WEEK_DAY_MINUTES);
    assert(profile.until <= WEEK_DAY_MINUTES && profile.mb <= RATE_PROFILE_MB_MAX);
}

/* As one of a request's, and as a line of the configuration. */
static void read_windows(const char *text)
{
    char *line = (char *)(uintptr_t)text;
    const struct config_list named = {&line, 1};
    struct field_problem problem = {0};
    struct time_windows_state at = {.open = false};
    struct error errs[3] = {0};
    auto_json *list = NULL;
    auto_json *given = json_pack("[s, s, {s:s, s:s, s:[s]}]", text, "nightly", "start_time", text,
                                 "end_time", "06:00", "days", text);

    if (given == NULL || time_windows_read(given, &named, &list, &problem, &errs[0]) < 0) {
        json_decref(given);
        given = json_pack("[s]", text);
        if (given == NULL || time_windows_read(given, NULL, &list, &problem, &errs[1]) < 0)
            return;
    }
    if (time_windows_at(list, 1772330400, &at, &errs[2]) < 0)
        abort(); /* what was read can be looked at */
    assert(at.change_s > 1772330400);
}

static void write_text(const char *text)
{
    auto_strbuf sb;
    autofree char *clean = utf8_clean(text, 100);
    json_t *json = NULL;
    struct error err = ERROR_NONE;

    assert(utf8_is_valid(clean) && strlen(clean) <= 100);
    strbuf_init(&sb, 16 * TEXT_BYTES_MAX);
    strbuf_add(&sb, "[\"");
    strbuf_add_json(&sb, text);
    strbuf_add(&sb, "\"]");
    if (json_parse(sb.data, sb.length, 16 * TEXT_BYTES_MAX, &json, &err) < 0)
        abort(); /* what we write can be read */
    json_decref(json);
    strbuf_reset(&sb);
    strbuf_add_xml(&sb, text);
    assert(strpbrk(sb.data, "<>\"'") == NULL);
    strbuf_reset(&sb);
    strbuf_add_url(&sb, text);
    assert(strpbrk(sb.data, " /?#&<>\"") == NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const readers[])(const char *) = {read_address, read_numbers, read_trace,
                                                    read_name,    read_path,    write_text,
                                                    read_profile, read_windows};
    autofree char *text = NULL;

    if (size < 1 || size > TEXT_BYTES_MAX)
        return 0;
    text = xstrndup((const char *)data + 1, size - 1);
    readers[data[0] % ARRAY_LEN(readers)](text);
    return 0;
}
