-- Admission of many requests in one call, as if each were asked after the one before it.
--
-- ARGV: prefix, '1' if keyed requests may be in the log that this instance was not told of, life of provisional units (s), life of a marker (s),
--       minutes that provisional units are summed over,
--       then groups of requests that follow each other and have the first five in common: sku, limit, minute, '1' if refused already, number of
--       requests, and for each: user, quantity, Redis key of its marker ('' = no key), id and fingerprint.
-- A marker is: state ('P' pending, 'R' pending and tried again, 'K' known), 32 digits of id, 16 of fingerprint, then the ticket of a
-- known one if it was told, or the minute that the units of a pending one were taken from.
-- Returns: age of this instance's memory (ms), then one answer per request:
--       0 ok, 2 key reused, 3 absent, or a text: 'L', decided units, a space and undecided ones = over the limit, 'P' and minute = pending,
--       id and ticket = replay.
--
-- Reads come first, one per hash for all users together, and writes last, again one per hash: 250 requests of one SKU are a handful of
-- commands. In between everything is kept in tables, so that a later request of the same call sees what an earlier one did. What is not
-- there is not kept: a crowd is made of users and keys that nobody knows, and each entry of a table costs more than its request's arguments.
local FIRST, HEAD, WIDTH = 6, 5, 4
local call = redis.call
local prefix, minutes = ARGV[1], tonumber(ARGV[5])

local function memory_age()
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local birth = ARGV[2] == '0' and call('GET', prefix .. 'birth')
  if not birth then
    birth = now
    call('SET', prefix .. 'birth', string.format('%.0f', now))
  end
  return math.max(0, now - tonumber(birth))
end

local function queued_key(sku, minute)
  return prefix .. 'q:' .. sku .. ':' .. minute
end

-- Which markers and which fields of which hashes are needed; one that is needed twice may be read twice.
local keys, markers = {}, {}
local skus = {}
local at = FIRST
while at <= #ARGV do
  local sku, minute, is_refused, last = ARGV[at], tonumber(ARGV[at + 2]), ARGV[at + 3] == '1', at + HEAD + WIDTH * ARGV[at + 4] - 1
  local of = skus[sku]
  if not is_refused then
    if not of then
      of = { users = {}, decided = {}, queued = {}, touched = {} }
      skus[sku] = of
    end
    for m = minute - minutes + 1, minute do of.queued[m] = of.queued[m] or {} end
  end
  for item = at + HEAD, last, WIDTH do
    if ARGV[item + 2] ~= '' then keys[#keys + 1] = ARGV[item + 2] end
    if not is_refused then of.users[#of.users + 1] = ARGV[item] end
  end
  at = last + 1
end

-- Reads.
if #keys > 0 then
  for i, marker in ipairs(call('MGET', unpack(keys))) do
    if marker then markers[keys[i]] = marker end
  end
end
local function read_units(key, users, into)
  for i, units in ipairs(call('HMGET', key, unpack(users))) do
    if units then into[users[i]] = tonumber(units) end
  end
end
for sku, of in pairs(skus) do
  read_units(prefix .. 'u:' .. sku, of.users, of.decided)
  for minute, queued in pairs(of.queued) do read_units(queued_key(sku, minute), of.users, queued) end
end

-- A broken hint must not make the answers of a whole call unreadable.
local function shown(units)
  return math.min(math.max(units, 0), 999999999)
end

-- One request after the other.
local function take_units(of, user, quantity, limit, minute)
  local decided, undecided = of.decided[user] or 0, 0
  for m = minute - minutes + 1, minute do undecided = undecided + (of.queued[m][user] or 0) end
  if decided + undecided + quantity > limit then return string.format('L%d %d', shown(decided), shown(undecided)) end
  local units = (of.queued[minute][user] or 0) + quantity
  of.queued[minute][user] = units
  of.touched[minute] = of.touched[minute] or {}
  of.touched[minute][user] = units
  return nil
end

local answers = { memory_age() }
at = FIRST
while at <= #ARGV do
  local of, limit, minute, is_refused = skus[ARGV[at]], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3] == '1'
  local last = at + HEAD + WIDTH * ARGV[at + 4] - 1
  for item = at + HEAD, last, WIDTH do
    local key, id_and_fingerprint = ARGV[item + 2], ARGV[item + 3]
    local marker = markers[key]
    local answer
    if marker then
      if string.sub(marker, 34, 49) ~= string.sub(id_and_fingerprint, 33, 48) then
        answer = 2
      elseif string.sub(marker, 1, 1) == 'K' then
        answer = string.sub(marker, 2, 33) .. string.sub(marker, 50)
      else
        answer = 'P' .. string.sub(marker, 50)
        -- This try is published under the first one's marker: from now on the failure of one try says nothing about the key.
        markers[key] = 'R' .. string.sub(marker, 2)
        call('SET', key, markers[key], 'EX', ARGV[4])
      end
    elseif is_refused then
      answer = 3
    else
      local over = take_units(of, ARGV[item], tonumber(ARGV[item + 1]), limit, minute)
      answer = over or 0
      if not over and key ~= '' then
        markers[key] = 'P' .. id_and_fingerprint .. ARGV[at + 2]
        call('SET', key, markers[key], 'EX', ARGV[4])
      end
    end
    answers[#answers + 1] = answer
  end
  at = last + 1
end

-- Writes.
for sku, of in pairs(skus) do
  for minute, users in pairs(of.touched) do
    local fields = {}
    for user, units in pairs(users) do
      fields[#fields + 1] = user
      fields[#fields + 1] = units
    end
    call('HSET', queued_key(sku, minute), unpack(fields))
    call('EXPIRE', queued_key(sku, minute), ARGV[3])
  end
end
return answers
