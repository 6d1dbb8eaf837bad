// A crowd for one SKU at a fixed arrival rate, for those who have k6 (https://k6.io): k6 run -e API=http://127.0.0.1:8080 -e SKU=demo reserve.js
//
// Open model (constant-arrival-rate): iterations begin whatever the answers are. Every user and key is used once. `flashsale load` does the
// same, costs less CPU, and checks the books at the end; this script checks each answer only.
import http from 'k6/http';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const API = __ENV.API || 'http://127.0.0.1:8080';
const SKU = __ENV.SKU || 'demo';
const WAIT = __ENV.WAIT || '10'; // seconds of `Prefer: wait`
const RUN = __ENV.RUN || `${Date.now()}`;

export const options = {
  scenarios: {
    crowd: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 500),
      timeUnit: '1s',
      duration: __ENV.DURATION || '30s',
      preAllocatedVUs: Number(__ENV.VUS || 200),
      maxVUs: Number(__ENV.VUS_MAX || 2000),
    },
  },
  thresholds: {
    checks: ['rate==1'],
    decision: ['p(95)<60'],
    dropped_iterations: ['count==0'], // k6 itself was too slow: its latencies mean nothing then
  },
};

const decision = new Trend('decision', true);
const reserved = new Counter('reserved');
const rejected = new Counter('rejected');
const refused = new Counter('refused');

export default function () {
  const buyer = `${RUN}-${__VU}-${__ITER}`;
  const answer = http.post(
    `${API}/v1/reservations`,
    JSON.stringify({ user_id: buyer, sku_id: SKU, quantity: 1 }),
    { headers: { 'Content-Type': 'application/json', 'Idempotency-Key': buyer, Prefer: `wait=${WAIT}` } },
  );
  const told = answer.status === 0 ? {} : answer.json();
  check(answer, {
    'an answer that stands': (r) => [200, 202, 403, 404, 409].includes(r.status),
    'decided, queued or refused by name': (r) => (r.status < 300 ? Boolean(told.status && told.id) : Boolean(told.code)),
  });
  if (answer.status === 200) {
    decision.add(answer.timings.duration);
    (told.status === 'RESERVED' ? reserved : rejected).add(1);
  } else if (answer.status >= 400) {
    refused.add(1, { code: told.code || String(answer.status) });
  }
}
