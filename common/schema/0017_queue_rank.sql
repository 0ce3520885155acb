-- The same rank. plpgsql keeps the plan of its statement for the session; a function in plain SQL that
-- is not inlined is planned anew at every call, and each submitted task calls it.
CREATE OR REPLACE FUNCTION queue_rank(at timestamptz, priority integer) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (extract(epoch FROM $1) * 1000)::bigint - $2::bigint
    * coalesce((SELECT (s.value #>> '{}')::bigint FROM settings s WHERE s.key = 'queue.aging_ms'), 60000);
END
$$;
