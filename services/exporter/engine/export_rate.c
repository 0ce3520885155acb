/* The bandwidth of one export: from its task into the limiter, and into the job's log. */
#include "services/exporter/engine/export_run.h"

static void on_rate(void *arg, const struct worker_rate *rate)
{
    struct export_run *run = arg;
    struct rate_settings settings = {
        .rate = rate->rate, .burst = rate->burst, .floor = rate->floor};

    {
        LOCK_SCOPE(&run->bandwidth.mutex);
        run->bandwidth.settings = settings;
    }
    rate_transfer_set(run->rate, &settings);
    atomic_store(&run->bandwidth.changed, true);
}

void export_rate_start(struct export_run *run)
{
    static const struct rate_settings none = {0};

    (void)pthread_mutex_init(&run->bandwidth.mutex, NULL);
    run->rate = rate_transfer_new(run->exporter->limiter, &none);
    worker_task_on_rate(run->task, on_rate, run);
    LOCK_SCOPE(&run->bandwidth.mutex);
    atomic_store(&run->bandwidth.changed, run->bandwidth.settings.rate > 0);
}

void export_rate_stop(struct export_run *run)
{
    if (run->rate == NULL)
        return;
    worker_task_on_rate(run->task, NULL, NULL);
    rate_transfer_free(STEAL(run->rate));
    (void)pthread_mutex_destroy(&run->bandwidth.mutex);
}

void export_rate_tell(struct export_run *run)
{
    struct rate_settings settings;

    if (!atomic_exchange(&run->bandwidth.changed, false))
        return;
    {
        LOCK_SCOPE(&run->bandwidth.mutex);
        settings = run->bandwidth.settings;
    }
    if (settings.rate == 0) {
        worker_task_log(run->task, LOG_LEVEL_INFO, "bandwidth of this job: no limit");
    } else if (settings.floor > 0) {
        worker_task_log(run->task, LOG_LEVEL_INFO,
                        "bandwidth of this job: adaptive, %.1f to %.1f MB/s",
                        (double)settings.floor / (double)MIB, (double)settings.rate / (double)MIB);
    } else {
        worker_task_log(run->task, LOG_LEVEL_INFO, "bandwidth of this job: %.1f MB/s",
                        (double)settings.rate / (double)MIB);
    }
}
