/* Scope-bound ownership of foreign types. */
#ifndef COMMON_AUTOS_H
#define COMMON_AUTOS_H

#include <curl/curl.h>
#include <dirent.h>
#include <hiredis/hiredis.h>
#include <jansson.h>
#include <libpq-fe.h>
#include <libxml/tree.h>

#include "common/base.h"

DEFINE_AUTO(pgresult, PGresult, PQclear)
#define auto_pgresult CLEANUP(pgresult_auto) PGresult
DEFINE_AUTO(redisreply, redisReply, freeReplyObject)
#define auto_redisreply CLEANUP(redisreply_auto) redisReply
DEFINE_AUTO(json, json_t, json_decref)
#define auto_json CLEANUP(json_auto) json_t
DEFINE_AUTO(curl, CURL, curl_easy_cleanup)
#define auto_curl CLEANUP(curl_auto) CURL
DEFINE_AUTO(curl_slist, struct curl_slist, curl_slist_free_all)
#define auto_curl_slist CLEANUP(curl_slist_auto) struct curl_slist
DEFINE_AUTO(dir, DIR, (void)closedir)
#define auto_dir CLEANUP(dir_auto) DIR
DEFINE_AUTO(xmldoc, xmlDoc, xmlFreeDoc)
#define auto_xmldoc CLEANUP(xmldoc_auto) xmlDoc

#endif
