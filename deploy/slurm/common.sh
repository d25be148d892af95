# Sourced by the batch files: where things are, from the environment of sbatch.
#   QUORUM_RUN_DIR  run directory, on a file system that all nodes share (required)
#   QUORUM_BIN      directory with coordinator, learner and rollout-worker; default: those on PATH
#   QUORUM_DEVICE   device of each learner rank and worker, e.g. cuda:0; default: the processor
#   QUORUM_CERTS    directory made by `coordinator certs`; needed as soon as processes are on several nodes
QUORUM_RUN_DIR=${QUORUM_RUN_DIR:?set QUORUM_RUN_DIR to a directory that all nodes share}
[ -z "${QUORUM_BIN:-}" ] || PATH=$QUORUM_BIN:$PATH

# How a worker or learner finds the coordinator, which may come up on another node after a requeue.
member=(--coordinator-file "$QUORUM_RUN_DIR/endpoints.json" --join-seconds 3600 --reconnect-seconds 3600)
[ -z "${QUORUM_DEVICE:-}" ] || member+=(--device "$QUORUM_DEVICE")
# What the coordinator listens on.
listen=(--set cluster.join_seconds=3600)
if [ -n "${QUORUM_CERTS:-}" ]; then
  member+=(--tls-ca "$QUORUM_CERTS/member/ca.pem" --tls-cert "$QUORUM_CERTS/member/cert.pem" --tls-key "$QUORUM_CERTS/member/key.pem"
    --token-file "$QUORUM_CERTS/member/token")
  listen+=(--set cluster.listen=0.0.0.0:0 --set cluster.http=127.0.0.1:0
    --set "cluster.tls_cert=$QUORUM_CERTS/coordinator/cert.pem" --set "cluster.tls_key=$QUORUM_CERTS/coordinator/key.pem"
    --set "cluster.tls_client_ca=$QUORUM_CERTS/coordinator/ca.pem" --set "cluster.token_file=$QUORUM_CERTS/coordinator/token")
fi
