/* The database schema that this build carries: numbered SQL files, never edited after landing. */
#ifndef COMMON_SCHEMA_H
#define COMMON_SCHEMA_H

#include "common/base.h"

struct schema_file {
    unsigned int version; /* rising from 1, no gaps */
    const char *name;     /* "0001_core" */
    const char *sql;
};

/* Generated at build time from common/schema/. */
extern const struct schema_file schema_files[];
extern const size_t schema_files_count;

#endif
