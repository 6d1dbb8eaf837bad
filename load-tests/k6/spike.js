// The moment a sale opens: a trickle, then ten times the rate at once, then a trickle. k6 run -e API=... -e SKU=demo -e RATE=200 spike.js
import crowd, { options as steady } from './reserve.js';

const RATE = Number(__ENV.RATE || 200);

export const options = {
  scenarios: {
    spike: {
      executor: 'ramping-arrival-rate',
      startRate: RATE,
      timeUnit: '1s',
      preAllocatedVUs: Number(__ENV.VUS || 500),
      maxVUs: Number(__ENV.VUS_MAX || 5000),
      stages: [
        { target: RATE, duration: '10s' },
        { target: 10 * RATE, duration: '1s' },
        { target: 10 * RATE, duration: '10s' },
        { target: RATE, duration: '1s' },
        { target: RATE, duration: '10s' },
      ],
    },
  },
  thresholds: steady.thresholds,
};

export default crowd;
