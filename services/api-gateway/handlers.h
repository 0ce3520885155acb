/* The handlers that routes.c names. Each answers both path families; ROUTE_SHORT in the route
 * tells it which shape is wanted. Signature and duties: route.h. */
#ifndef GATEWAY_HANDLERS_H
#define GATEWAY_HANDLERS_H

#include "route.h"
#include "common/submit.h"

/* handlers_service.c */
int handle_health(struct call *call, struct error *err);  /* ROUTE_OPEN | ROUTE_NO_DB */
int handle_ready(struct call *call, struct error *err);   /* ROUTE_OPEN | ROUTE_NO_DB */
int handle_openapi(struct call *call, struct error *err); /* ROUTE_OPEN | ROUTE_NO_DB */
int handle_status(struct call *call, struct error *err);
int handle_capabilities(struct call *call, struct error *err);

/* handlers_jobs.c. Submit wants job.create (route) and vm.export (looked at inside). Cancel wants
 * job.cancel or, for one's own jobs, job.cancel.own: the route says "job.cancel.own", the handler
 * looks at the job's owner. */
/* exports_key: NULL when passphrases are not to be sealed. */
struct submit_settings submit_settings_of(const struct gateway *gateway,
                                          const struct seal_key *exports_key);
/* May this caller submit it? What a parsed request asks for beyond an export. */
MUST_CHECK int submit_may(struct call *call, const struct submit_request *request,
                          struct field_problem *problem, struct error *err);
/* One element of a submit as job and export. problem->status stays 0 when the failure is not the
 * element's fault. */
MUST_CHECK int submit_element(struct call *call, const json_t *element, struct submit_request **out,
                              struct field_problem *problem, struct error *err);
int handle_job_submit(struct call *call, struct error *err);
int handle_job_cancel(struct call *call, struct error *err);      /* /api/v1/jobs/{id}/cancel */
int handle_job_cancel_many(struct call *call, struct error *err); /* POST /jobs/cancel */
int handle_job_retry(struct call *call, struct error *err);

/* handlers_queue.c */
int handle_queue_get(struct call *call, struct error *err);
int handle_queue_pause(struct call *call, struct error *err);
int handle_queue_resume(struct call *call, struct error *err);
int handle_worker_drain(struct call *call, struct error *err);  /* {instance} */
int handle_worker_resume(struct call *call, struct error *err); /* {instance} */
/* {"paused", "paused_by", "paused_since", "reason"}; new reference. */
MUST_CHECK int queue_state(struct db *db, json_t **out, struct error *err);

/* handlers_job_hold.c; {id} in the path. Pause and resume look at the owner as cancel does. */
int handle_job_pause(struct call *call, struct error *err);
int handle_job_resume(struct call *call, struct error *err);
int handle_job_delete(struct call *call, struct error *err);

/* handlers_job_bandwidth.c; {id} in the path */
int handle_worker_bandwidth_get(struct call *call, struct error *err);
int handle_worker_bandwidth_put(struct call *call, struct error *err);
int handle_worker_bandwidth_delete(struct call *call, struct error *err);
int handle_job_bandwidth(struct call *call, struct error *err);

/* handlers_job_query.c */
int handle_job_query(struct call *call, struct error *err);   /* GET by parameters, POST by body */
int handle_import_list(struct call *call, struct error *err); /* the same, imports only */

/* handlers_job_views.c; {id} in the path except for stats */
int handle_job_get(struct call *call, struct error *err);
int handle_job_progress(struct call *call, struct error *err);
int handle_job_eta(struct call *call, struct error *err);
int handle_job_history(struct call *call, struct error *err);
int handle_job_artifacts(struct call *call, struct error *err);
int handle_job_stats(struct call *call, struct error *err);

/* handlers_job_logs.c; follow: hands over to the hub */
int handle_job_logs(struct call *call, struct error *err);

/* handlers_policies.c; {id} in the path */
int handle_policy_create(struct call *call, struct error *err);
int handle_policy_list(struct call *call, struct error *err);
int handle_policy_get(struct call *call, struct error *err);
int handle_policy_put(struct call *call, struct error *err);
int handle_policy_delete(struct call *call, struct error *err);
int handle_policy_preview(struct call *call, struct error *err); /* ROUTE_SLOW, as run and create */
int handle_policy_run(struct call *call, struct error *err);

/* handlers_workflows.c; {id}: of a workflow, or its name; {run}. What a run submits asks for the
 * permissions of its steps, when the workflow is made and when it is run. Cancel, pause, resume and
 * retry look at who started the run as the cancel of jobs does. */
int handle_workflow_list(struct call *call, struct error *err);
int handle_workflow_create(struct call *call, struct error *err);
int handle_workflow_get(struct call *call, struct error *err);
int handle_workflow_delete(struct call *call, struct error *err);
int handle_workflow_run(struct call *call, struct error *err);
int handle_workflow_run_get(struct call *call, struct error *err);
int handle_workflow_run_cancel(struct call *call, struct error *err);
int handle_workflow_run_pause(struct call *call, struct error *err);
int handle_workflow_run_resume(struct call *call, struct error *err);
int handle_workflow_run_retry(struct call *call, struct error *err);

/* handlers_exports.c */
int handle_export_list(struct call *call, struct error *err);
int handle_export_get(struct call *call, struct error *err);         /* {id} */
int handle_export_check_chain(struct call *call, struct error *err); /* {id} */
int handle_export_prune(struct call *call, struct error *err);       /* {id} */
int handle_export_flatten(struct call *call, struct error *err);     /* {id} */
int handle_export_verify(struct call *call, struct error *err);      /* {id}: 202 with a job */
int handle_export_verify_path(struct call *call, struct error *err); /* body.path */
int handle_evidence_key(struct call *call, struct error *err);       /* PEM */

/* handlers_cleanup.c */
int handle_export_cleanup(struct call *call, struct error *err); /* 202 with a job */
int handle_cleanup_schedule_get(struct call *call, struct error *err);
int handle_cleanup_schedule_put(struct call *call, struct error *err);
int handle_cleanup_schedule_delete(struct call *call, struct error *err);

/* handlers_schedules.c; {id} but for the first four */
int handle_schedule_create(struct call *call, struct error *err);
int handle_schedule_list(struct call *call, struct error *err);
int handle_schedule_stats(struct call *call, struct error *err);
int handle_schedule_validate(struct call *call, struct error *err);
int handle_schedule_get(struct call *call, struct error *err);
int handle_schedule_put(struct call *call, struct error *err);
int handle_schedule_delete(struct call *call, struct error *err);
int handle_schedule_enable(struct call *call, struct error *err);
int handle_schedule_disable(struct call *call, struct error *err);
int handle_schedule_trigger(struct call *call, struct error *err);
int handle_schedule_runs(struct call *call, struct error *err);

/* handlers_templates.c */
int handle_template_list(struct call *call, struct error *err);
int handle_template_create(struct call *call, struct error *err);
int handle_template_get(struct call *call, struct error *err);    /* {name} */
int handle_template_put(struct call *call, struct error *err);    /* {name} */
int handle_template_delete(struct call *call, struct error *err); /* {name} */
int handle_template_render(struct call *call, struct error *err); /* {name}, vars */

/* handlers_imports.c */
int handle_import(struct call *call, struct error *err); /* 202 with a job */
int handle_convert(struct call *call, struct error *err);
int handle_conversion_list(struct call *call, struct error *err);
int handle_conversion_get(struct call *call, struct error *err);
int handle_manifest_submit(struct call *call, struct error *err);
int handle_manifest_validate(struct call *call, struct error *err); /* read by the bridge */
int handle_disk_inspect(struct call *call, struct error *err);      /* by the bridge as well */
int handle_bridge_status(struct call *call, struct error *err);

/* handlers_libvirt.c; ROUTE_SLOW: every endpoint below /libvirt, told apart by its operation */
int handle_libvirt(struct call *call, struct error *err);

/* handlers_vms.c; ROUTE_SLOW */
int handle_vm_list(struct call *call, struct error *err); /* GET by parameters, POST by body */
int handle_vm_info(struct call *call, struct error *err); /* {id} or vm_path */
/* handlers_incremental.c; ROUTE_SLOW. {id} or vm_path */
int handle_incremental_analyze(struct call *call, struct error *err);
int handle_cbt_enable(struct call *call, struct error *err);
int handle_cbt_disable(struct call *call, struct error *err);
int handle_cbt_status(struct call *call, struct error *err);
int handle_task_get(struct call *call, struct error *err); /* /api/v1/tasks/{id}: of a 202 answer */

/* handlers_providers.c; validate is ROUTE_SLOW */
int handle_provider_list(struct call *call, struct error *err);
int handle_provider_get(struct call *call, struct error *err); /* {name} */
int handle_provider_add(struct call *call, struct error *err);
int handle_provider_put(struct call *call, struct error *err);      /* {name} */
int handle_provider_delete(struct call *call, struct error *err);   /* {name} */
int handle_provider_validate(struct call *call, struct error *err); /* {name} or body.provider */

/* handlers_service.c: what /status answers, also sent to live clients every 5 s. *out: object. */
MUST_CHECK int status_build(struct gateway *gateway, struct db *db, json_t **out,
                            struct error *err);

/* handlers_session.c */
int handle_login(struct call *call, struct error *err);
int handle_logout(struct call *call, struct error *err);
int handle_session_list(struct call *call, struct error *err);
int handle_session_delete(struct call *call, struct error *err); /* {id} */
int handle_key_list(struct call *call, struct error *err);
int handle_key_generate(struct call *call, struct error *err);
int handle_key_delete(struct call *call, struct error *err); /* {id} */

/* handlers_users.c */
int handle_user_list(struct call *call, struct error *err);
int handle_user_create(struct call *call, struct error *err);
int handle_user_get(struct call *call, struct error *err);    /* {id} */
int handle_user_put(struct call *call, struct error *err);    /* {id} */
int handle_user_delete(struct call *call, struct error *err); /* {id} */
int handle_role_list(struct call *call, struct error *err);

/* handlers_audit.c */
int handle_audit_logs(struct call *call, struct error *err);

/* websocket.c, sse.c */
int handle_websocket(struct call *call, struct error *err);
int handle_events(struct call *call, struct error *err);

#endif
