/* THE table: one line per route and path family. Routing, permissions, audit, limits and the
 * OpenAPI test all read it. Order does not matter. */
#include "handlers.h"

/* One line per route. */
/* clang-format off */
const struct route routes[] = {
    /* method, path, permission, audit action, operation, flags, handler */

    /* service */
    {"GET", "/health", NULL, NULL, "getHealth", ROUTE_OPEN | ROUTE_NO_DB | ROUTE_SHORT, handle_health},
    {"GET", "/api/v1/health", NULL, NULL, "getHealth", ROUTE_OPEN | ROUTE_NO_DB, handle_health},
    {"GET", "/health/ready", NULL, NULL, "getReady", ROUTE_OPEN | ROUTE_NO_DB | ROUTE_SHORT, handle_ready},
    {"GET", "/api/v1/health/ready", NULL, NULL, "getReady", ROUTE_OPEN | ROUTE_NO_DB, handle_ready},
    {"GET", "/openapi.json", NULL, NULL, "getOpenapi", ROUTE_OPEN | ROUTE_NO_DB | ROUTE_SHORT, handle_openapi},
    {"GET", "/api/v1/openapi.json", NULL, NULL, "getOpenapi", ROUTE_OPEN | ROUTE_NO_DB, handle_openapi},
    {"GET", "/status", "status.view", "status.view", "getStatus", ROUTE_SHORT, handle_status},
    {"GET", "/api/v1/status", "status.view", "status.view", "getStatus", 0, handle_status},
    {"GET", "/capabilities", "status.view", "capabilities.view", "getCapabilities", ROUTE_SHORT, handle_capabilities},
    {"GET", "/api/v1/capabilities", "status.view", "capabilities.view", "getCapabilities", 0, handle_capabilities},

    /* jobs */
    {"POST", "/jobs/submit", "job.create", "job.create", "submitJob", ROUTE_SHORT, handle_job_submit},
    {"POST", "/api/v1/jobs", "job.create", "job.create", "submitJob", 0, handle_job_submit},
    {"GET", "/jobs/query", "job.view", "job.query", "queryJobs", ROUTE_SHORT, handle_job_query},
    {"GET", "/api/v1/jobs", "job.view", "job.query", "queryJobs", 0, handle_job_query},
    {"POST", "/jobs/query", "job.view", "job.query", "queryJobsByBody", ROUTE_SHORT, handle_job_query},
    {"POST", "/api/v1/jobs/query", "job.view", "job.query", "queryJobsByBody", 0, handle_job_query},
    {"GET", "/jobs/stats", "job.view", "job.stats", "getJobStats", ROUTE_SHORT, handle_job_stats},
    {"GET", "/api/v1/jobs/stats", "job.view", "job.stats", "getJobStats", 0, handle_job_stats},
    {"GET", "/jobs/{id}", "job.view", "job.view", "getJob", ROUTE_SHORT, handle_job_get},
    {"GET", "/api/v1/jobs/{id}", "job.view", "job.view", "getJob", 0, handle_job_get},
    {"POST", "/jobs/cancel", "job.cancel.own", "job.cancel", "cancelJobs", ROUTE_SHORT, handle_job_cancel_many},
    {"POST", "/api/v1/jobs/{id}/cancel", "job.cancel.own", "job.cancel", "cancelJob", 0, handle_job_cancel},
    {"POST", "/api/v1/jobs/{id}/retry", "job.create", "job.retry", "retryJob", 0, handle_job_retry},
    {"PUT", "/api/v1/jobs/{id}/bandwidth", "job.create", "job.bandwidth", "setJobBandwidth", 0, handle_job_bandwidth},
    {"GET", "/jobs/progress/{id}", "job.view", "job.progress", "getJobProgress", ROUTE_SHORT, handle_job_progress},
    {"GET", "/api/v1/jobs/{id}/progress", "job.view", "job.progress", "getJobProgress", 0, handle_job_progress},
    {"GET", "/jobs/logs/{id}", "job.view", "job.logs", "getJobLogs", ROUTE_STREAM | ROUTE_SHORT, handle_job_logs},
    {"GET", "/api/v1/jobs/{id}/logs", "job.view", "job.logs", "getJobLogs", ROUTE_STREAM, handle_job_logs},
    {"GET", "/jobs/eta/{id}", "job.view", "job.eta", "getJobEta", ROUTE_SHORT, handle_job_eta},
    {"GET", "/api/v1/jobs/{id}/eta", "job.view", "job.eta", "getJobEta", 0, handle_job_eta},
    {"GET", "/api/v1/jobs/{id}/history", "job.view", "job.history", "getJobHistory", 0, handle_job_history},
    {"GET", "/api/v1/jobs/{id}/artifacts", "job.view", "job.artifacts", "getJobArtifacts", 0, handle_job_artifacts},

    /* exports that exist */
    {"GET", "/api/v1/exports", "job.view", "export.list", "listExports", 0, handle_export_list},
    {"GET", "/api/v1/exports/{id}", "job.view", "export.view", "getExport", 0, handle_export_get},
    {"POST", "/api/v1/exports/verify", "job.create", "export.verify", "verifyExportPath", 0, handle_export_verify_path},
    {"POST", "/api/v1/exports/{id}/check-chain", "job.create", "export.check_chain", "checkExportChain", 0, handle_export_check_chain},
    {"POST", "/api/v1/exports/{id}/prune", "job.create", "export.prune", "pruneExportChain", 0, handle_export_prune},
    {"POST", "/api/v1/exports/{id}/flatten", "job.create", "export.flatten", "flattenExport", 0, handle_export_flatten},
    {"POST", "/api/v1/exports/{id}/verify", "job.create", "export.verify", "verifyExport", 0, handle_export_verify},
    {"POST", "/api/v1/exports/cleanup", "job.delete", "export.cleanup", "cleanupExports", 0, handle_export_cleanup},
    {"GET", "/api/v1/exports/cleanup/schedule", "job.view", "cleanup.view", "getCleanupSchedule", 0, handle_cleanup_schedule_get},
    {"PUT", "/api/v1/exports/cleanup/schedule", "settings.manage", "cleanup.schedule", "putCleanupSchedule", 0, handle_cleanup_schedule_put},
    {"DELETE", "/api/v1/exports/cleanup/schedule", "settings.manage", "cleanup.unschedule", "deleteCleanupSchedule", 0, handle_cleanup_schedule_delete},
    {"GET", "/api/v1/evidence/public-key", "job.view", "evidence.key", "getEvidenceKey", 0, handle_evidence_key},

    /* conversions, and into libvirt */
    {"POST", "/convert", "convert.run", "conversion.create", "convert", ROUTE_SHORT, handle_convert},
    {"POST", "/convert/vm", "convert.run", "conversion.create", "convert", ROUTE_SHORT, handle_convert},
    {"POST", "/api/v1/conversions", "convert.run", "conversion.create", "convert", 0, handle_convert},
    {"GET", "/convert/list", "job.view", "conversion.list", "listConversions", ROUTE_SHORT, handle_conversion_list},
    {"GET", "/api/v1/conversions", "job.view", "conversion.list", "listConversions", 0, handle_conversion_list},
    {"GET", "/convert/status", "job.view", "conversion.view", "getConversion", ROUTE_SHORT, handle_conversion_get},
    {"GET", "/api/v1/conversions/{id}", "job.view", "conversion.view", "getConversion", 0, handle_conversion_get},
    {"POST", "/api/workflow/manifest/submit", "convert.run", "manifest.submit", "submitManifest", ROUTE_SHORT, handle_manifest_submit},
    {"POST", "/api/v1/manifests", "convert.run", "manifest.submit", "submitManifest", 0, handle_manifest_submit},
    {"POST", "/api/workflow/manifest/validate", "job.view", "manifest.validate", "validateManifest", ROUTE_SLOW | ROUTE_SHORT, handle_manifest_validate},
    {"POST", "/api/v1/manifests/validate", "job.view", "manifest.validate", "validateManifest", ROUTE_SLOW, handle_manifest_validate},
    {"GET", "/vmdk/parse", "convert.run", "disk.inspect", "inspectDisk", ROUTE_SLOW | ROUTE_SHORT, handle_disk_inspect},
    {"GET", "/parse-vmdk", "convert.run", "disk.inspect", "inspectDisk", ROUTE_SLOW | ROUTE_SHORT, handle_disk_inspect},
    {"GET", "/api/v1/disks/inspect", "convert.run", "disk.inspect", "inspectDisk", ROUTE_SLOW, handle_disk_inspect},
    {"GET", "/api/workflow/status", "job.view", "bridge.status", "getBridgeStatus", ROUTE_SHORT, handle_bridge_status},
    {"GET", "/api/workflow/jobs", "job.view", "bridge.status", "getBridgeStatus", ROUTE_SHORT, handle_bridge_status},
    {"GET", "/api/workflow/jobs/active", "job.view", "bridge.status", "getBridgeStatus", ROUTE_SHORT, handle_bridge_status},
    {"GET", "/api/v1/bridge/status", "job.view", "bridge.status", "getBridgeStatus", 0, handle_bridge_status},
    {"POST", "/import-to-kvm", "convert.run", "import.create", "importToKvm", ROUTE_SHORT, handle_import},
    {"POST", "/import/kvm", "convert.run", "import.create", "importToKvm", ROUTE_SHORT, handle_import},
    {"POST", "/api/v1/imports", "convert.run", "import.create", "importToKvm", 0, handle_import},
    {"GET", "/api/v1/imports", "job.view", "import.list", "listImports", 0, handle_import_list},

    /* VMs */
    {"GET", "/vms/list", "vm.list", "vm.list", "listVms", ROUTE_SLOW | ROUTE_SHORT, handle_vm_list},
    {"GET", "/api/v1/vms", "vm.list", "vm.list", "listVms", ROUTE_SLOW, handle_vm_list},
    {"POST", "/vms/list", "vm.list", "vm.list", "listVmsByBody", ROUTE_SLOW | ROUTE_SHORT, handle_vm_list},
    {"POST", "/api/v1/vms", "vm.list", "vm.list", "listVmsByBody", ROUTE_SLOW, handle_vm_list},
    {"GET", "/vms/info", "vm.list", "vm.view", "getVm", ROUTE_SLOW | ROUTE_SHORT, handle_vm_info},
    {"POST", "/vms/info", "vm.list", "vm.view", "getVm", ROUTE_SLOW | ROUTE_SHORT, handle_vm_info},
    {"GET", "/api/v1/vms/{id}", "vm.list", "vm.view", "getVm", ROUTE_SLOW, handle_vm_info},
    {"POST", "/incremental/analyze", "vm.list", "vm.incremental", "analyzeIncremental", ROUTE_SLOW | ROUTE_SHORT, handle_incremental_analyze},
    {"POST", "/api/v1/vms/{id}/incremental", "vm.list", "vm.incremental", "analyzeIncremental", ROUTE_SLOW, handle_incremental_analyze},
    {"GET", "/api/v1/tasks/{id}", "vm.list", "task.view", "getTask", 0, handle_task_get},

    /* providers */
    {"GET", "/providers/list", "vm.list", "provider.list", "listProviders", ROUTE_SHORT, handle_provider_list},
    {"GET", "/api/v1/providers", "vm.list", "provider.list", "listProviders", 0, handle_provider_list},
    {"POST", "/providers/add", "settings.manage", "provider.create", "addProvider", ROUTE_SHORT, handle_provider_add},
    {"POST", "/api/v1/providers", "settings.manage", "provider.create", "addProvider", 0, handle_provider_add},
    {"GET", "/api/v1/providers/{name}", "vm.list", "provider.view", "getProvider", 0, handle_provider_get},
    {"PUT", "/api/v1/providers/{name}", "settings.manage", "provider.update", "updateProvider", 0, handle_provider_put},
    {"DELETE", "/api/v1/providers/{name}", "settings.manage", "provider.delete", "deleteProvider", 0, handle_provider_delete},
    {"POST", "/providers/validate", "vm.list", "provider.validate", "validateProvider", ROUTE_SLOW | ROUTE_SHORT, handle_provider_validate},
    {"POST", "/api/v1/providers/{name}/validate", "vm.list", "provider.validate", "validateProvider", ROUTE_SLOW, handle_provider_validate},

    /* workers */
    {"GET", "/api/v1/workers/{kind}/bandwidth", "status.view", "worker.bandwidth_view", "getWorkerBandwidth", 0, handle_worker_bandwidth_get},
    {"PUT", "/api/v1/workers/{kind}/bandwidth", "settings.manage", "worker.bandwidth", "setWorkerBandwidth", 0, handle_worker_bandwidth_put},
    {"DELETE", "/api/v1/workers/{kind}/bandwidth", "settings.manage", "worker.bandwidth_reset", "resetWorkerBandwidth", 0, handle_worker_bandwidth_delete},

    /* identity */
    {"POST", "/api/login", NULL, "auth.login", "login", ROUTE_OPEN | ROUTE_PASSWORD | ROUTE_SHORT, handle_login},
    {"POST", "/api/v1/auth/login", NULL, "auth.login", "login", ROUTE_OPEN | ROUTE_PASSWORD, handle_login},
    {"POST", "/api/logout", NULL, "auth.logout", "logout", ROUTE_SELF | ROUTE_SHORT, handle_logout},
    {"POST", "/api/v1/auth/logout", NULL, "auth.logout", "logout", ROUTE_SELF, handle_logout},
    {"GET", "/users/list", "user.manage", "user.list", "listUsers", ROUTE_SHORT, handle_user_list},
    {"GET", "/api/v1/users", "user.manage", "user.list", "listUsers", 0, handle_user_list},
    {"POST", "/users/create", "user.manage", "user.create", "createUser", ROUTE_PASSWORD | ROUTE_SHORT, handle_user_create},
    {"POST", "/api/v1/users", "user.manage", "user.create", "createUser", ROUTE_PASSWORD, handle_user_create},
    {"GET", "/api/v1/users/{id}", "user.manage", "user.view", "getUser", 0, handle_user_get},
    {"PUT", "/api/v1/users/{id}", "user.manage", "user.update", "updateUser", ROUTE_PASSWORD, handle_user_put},
    {"DELETE", "/api/v1/users/{id}", "user.manage", "user.delete", "deleteUser", 0, handle_user_delete},
    {"GET", "/roles/list", "user.manage", "role.list", "listRoles", ROUTE_SHORT, handle_role_list},
    {"GET", "/api/v1/roles", "user.manage", "role.list", "listRoles", 0, handle_role_list},
    {"GET", "/api-keys/list", NULL, "api_key.list", "listApiKeys", ROUTE_SELF | ROUTE_SHORT, handle_key_list},
    {"GET", "/api/v1/api-keys", NULL, "api_key.list", "listApiKeys", ROUTE_SELF, handle_key_list},
    {"POST", "/api-keys/generate", NULL, "api_key.create", "createApiKey", ROUTE_SELF | ROUTE_SHORT, handle_key_generate},
    {"POST", "/api/v1/api-keys", NULL, "api_key.create", "createApiKey", ROUTE_SELF, handle_key_generate},
    {"DELETE", "/api/v1/api-keys/{id}", NULL, "api_key.delete", "deleteApiKey", ROUTE_SELF, handle_key_delete},
    {"GET", "/sessions/list", "user.manage", "session.list", "listSessions", ROUTE_SHORT, handle_session_list},
    {"GET", "/api/v1/sessions", "user.manage", "session.list", "listSessions", 0, handle_session_list},
    {"DELETE", "/api/v1/sessions/{id}", "user.manage", "session.delete", "deleteSession", 0, handle_session_delete},
    {"GET", "/audit/logs", "audit.view", "audit.query", "queryAudit", ROUTE_SHORT, handle_audit_logs},
    {"GET", "/api/v1/audit", "audit.view", "audit.query", "queryAudit", 0, handle_audit_logs},

    /* live events */
    {"GET", "/websocket", "job.view", "events.websocket", "websocket", ROUTE_STREAM | ROUTE_LATE_AUTH | ROUTE_SHORT, handle_websocket},
    {"GET", "/ws", "job.view", "events.websocket", "websocket", ROUTE_STREAM | ROUTE_LATE_AUTH | ROUTE_SHORT, handle_websocket},
    {"GET", "/api/v1/ws", "job.view", "events.websocket", "websocket", ROUTE_STREAM | ROUTE_LATE_AUTH, handle_websocket},
    {"GET", "/events", "job.view", "events.stream", "events", ROUTE_STREAM | ROUTE_SHORT, handle_events},
    {"GET", "/api/v1/events", "job.view", "events.stream", "events", ROUTE_STREAM, handle_events},
};
/* clang-format on */
const size_t routes_count = ARRAY_LEN(routes);
