-- Keeps the limits of one organisation: reserve, settle, renew, totals, each in one atomic step.
-- Time is this server's alone. What it decides is what memory_store.py decides; tests hold both
-- to one model. All keys carry the organisation's hash tag, so a call stays in one cluster slot.
-- Beware: `..` writes a number with 14 digits only; moments and amounts must not pass it.
--
-- KEYS[1]  totals       hash: ever reserved (r*), settled (s*), released (f*), lapsed (l*), in
--                       requests, tokens, cost; `now` the latest time seen, `mean` time of a hold
-- KEYS[2]  open holds   zset: {id, requests, tokens, cost} by the moment when it is given up
-- KEYS[3]  a hold       string: {its member there, at, each rule's amount}; or x: closed
-- KEYS[4]  and on, one for each rule:
--   sliding window      hash: amount by second, `total`, `oldest`, `newest` second
--   calendar window     hash: FIRST_DAY and u used, x spent, s when seeded, a alert told
--   seats               zset: id of a hold by the end of its lease
--
-- What is in braces is packed (MessagePack), as are the arguments and answers: one string each way
-- costs a client and this script less than a hundred numbers. Reserve and settle are given
-- ARGV[2] {id, mode, age, ended, lease, keep, requests, tokens, cost}; age and end: how long ago
-- ARGV[3] {kind, bound, amount, day, seed} of each rule: the bound is the limit, in settle the
--         alert; day and seed are the first day of a window (or -1) and what it has used

local SECOND, HOUR, DAY = 1000000, 3600000000, 86400000000
local LIVE_S = 60                   -- a bucket counts for so many seconds after its own
local CLOSED_MS = 120000            -- a closed hold is remembered: a delayed command finds it so
local RETAIN_MS = 2 * 86400000      -- the totals of an organisation nobody uses
local AFTER_MS = 86400000           -- a calendar window beyond its end, for late settlements
local SEED_GRACE = 5 * SECOND       -- a usage row takes so long from the end to the ledger
local MAX_SWEPT = 100
local LEAST_WAIT, MOST_WAIT, COLD_WAIT = 100000, 60 * SECOND, SECOND
local DENIED, GRANTED, UNSEEDED, CLOSED, UNKNOWN = 0, 1, 2, 3, 4
local NEVER = -1

-- The clock may be set back: by up to a minute time stands still, beyond that it is believed.
local function read_clock()
  local t = redis.call('TIME')
  local now = t[1] * SECOND + t[2]
  local last = tonumber(redis.call('HGET', KEYS[1], 'now') or 0)
  if last >= now and last - now <= 60 * SECOND then return last end
  redis.call('HSET', KEYS[1], 'now', now)
  if now - last > HOUR or last > now then redis.call('PEXPIRE', KEYS[1], RETAIN_MS) end
  return now
end

local function count(what, requests, tokens, cost)
  if requests ~= 0 then redis.call('HINCRBY', KEYS[1], what .. 'r', requests) end
  if tokens ~= 0 then redis.call('HINCRBY', KEYS[1], what .. 't', tokens) end
  if cost ~= 0 then redis.call('HINCRBY', KEYS[1], what .. 'c', cost) end
end

-- What nobody settled in time was taken in full: its worker died.
local function sweep(now)
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, MAX_SWEPT)
  for _, member in ipairs(due) do
    local _, requests, tokens, cost = unpack(cmsgpack.unpack(member))
    redis.call('ZREM', KEYS[2], member)
    count('s', requests, tokens, cost)
    count('l', requests, tokens, cost)
  end
end

-- The record of an open hold, CLOSED where it is over, nil where there is none. What was swept is
-- closed, though its record is still there.
local function find(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  if packed == 'x' then return CLOSED end
  local record = cmsgpack.unpack(packed)
  return redis.call('ZSCORE', KEYS[2], record[1]) and record or CLOSED
end

-- ---- sliding windows -------------------------------------------------------------------------

-- Reads a window as it is now, with the amount of the second that held the moment `at`.
local function open_window(key, now, at)
  local this, second = math.floor(now / SECOND), math.floor(at / SECOND)
  local w = {key = key, total = 0, oldest = second, newest = second, second = second, amount = 0}
  local v = redis.call('HMGET', key, 'total', 'oldest', 'newest', second)
  if not v[1] then return w end
  local oldest, newest = tonumber(v[2]), tonumber(v[3])
  if newest > this or newest < this - LIVE_S then
    redis.call('DEL', key)
    return w
  end
  w.total, w.oldest, w.newest, w.amount = tonumber(v[1]), oldest, newest, tonumber(v[4] or 0)
  if oldest < this - LIVE_S then
    local gone = {}
    for s = oldest, this - LIVE_S - 1 do gone[#gone + 1] = s end
    for _, amount in ipairs(redis.call('HMGET', key, unpack(gone))) do
      if amount then w.total = w.total - tonumber(amount) end
    end
    w.oldest = this - LIVE_S
    redis.call('HDEL', key, unpack(gone))
    redis.call('HSET', key, 'total', w.total, 'oldest', w.oldest)
  end
  return w
end

-- Adds to the second the window was opened with, or takes from it what is there.
local function add_to_window(w, amount, now)
  if w.second < math.floor(now / SECOND) - LIVE_S then return end
  local has = math.max(w.amount + amount, 0)
  if has == w.amount then return end
  local is_new = w.total == 0 or w.second > w.newest
  w.total, w.amount = w.total + has - w.amount, has
  w.oldest, w.newest = math.min(w.oldest, w.second), math.max(w.newest, w.second)
  redis.call('HSET', w.key, 'total', w.total, 'oldest', w.oldest, 'newest', w.newest, w.second, has)
  if is_new then redis.call('PEXPIRE', w.key, (LIVE_S + 2) * 1000) end
end

local function amounts_of(w)
  local seconds = {}
  for s = w.oldest, w.newest do seconds[#seconds + 1] = s end
  return redis.call('HMGET', w.key, unpack(seconds))
end

-- How long until `need` of the window has left.
local function left_in(w, need, now)
  local sum = 0
  for i, amount in ipairs(amounts_of(w)) do
    if amount then sum = sum + tonumber(amount) end
    if sum >= need then return (w.oldest + i + LIVE_S) * SECOND - now end
  end
end

-- How long until all of it has left.
local function empty_in(w, now)
  if w.total == 0 then return 0 end
  if w.amount > 0 and w.second == w.newest then return (w.second + LIVE_S + 1) * SECOND - now end
  for s = w.newest, w.oldest, -1 do
    if tonumber(redis.call('HGET', w.key, s) or 0) > 0 then
      return (s + LIVE_S + 1) * SECOND - now
    end
  end
end

-- ---- calendar windows ------------------------------------------------------------------------

-- The day of its month, 1 to 31, of a day counted from 1970 (proleptic Gregorian calendar; the
-- arithmetic of civil_from_days, howardhinnant.github.io/date_algorithms.html).
local function day_of_month(day)
  local in_era = (day + 719468) % 146097
  local year = math.floor((in_era - math.floor(in_era / 1460) + math.floor(in_era / 36524)
    - math.floor(in_era / 146096)) / 365)
  local in_year = in_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  return in_year - math.floor((153 * math.floor((5 * in_year + 2) / 153) + 2) / 5) + 1
end

-- The first day of the window that holds a moment, and the first of the next one.
local function span(kind, at)
  local day = math.floor(at / DAY)
  if kind == 'd' then return day, day + 1 end
  if kind == 'w' then
    local monday = day - (day + 3) % 7
    return monday, monday + 7
  end
  local first = day - day_of_month(day) + 1
  local beyond = first + 31
  return first, beyond - day_of_month(beyond) + 1
end

-- Begins a window with what the ledger knows; of earlier ones the last is kept, for late refunds.
local function seed(key, kind, used, now)
  local first, next = span(kind, now)
  local fields, before = redis.call('HKEYS', key), nil
  for _, field in ipairs(fields) do
    local other = tonumber(string.sub(field, 1, -2))
    if other < first and (not before or other > before) then before = other end
  end
  for _, field in ipairs(fields) do
    if tonumber(string.sub(field, 1, -2)) ~= before then redis.call('HDEL', key, field) end
  end
  redis.call('HSET', key, first .. 'u', used, first .. 'x', used, first .. 's', now)
  redis.call('PEXPIRE', key, math.ceil((next * DAY - now) / 1000) + AFTER_MS)
end

-- Adds to the window that held the moment `at`, and what of it was spent; returns the latter, nil
-- where the window is not kept. What ended well before its seed was taken is part of the seed.
local function add_to_calendar(key, kind, at, amount, spent, ended)
  local first = span(kind, at)
  local v = redis.call('HMGET', key, first .. 'u', first .. 's', first .. 'x')
  if not v[1] or ended and ended + SEED_GRACE < tonumber(v[2]) then return nil end
  local used, all_spent = math.max(tonumber(v[1]) + amount, 0), tonumber(v[3]) + spent
  redis.call('HSET', key, first .. 'u', used, first .. 'x', all_spent)
  return all_spent, first
end

-- ---- operations ------------------------------------------------------------------------------

local function read_rules()
  local rules = cmsgpack.unpack(ARGV[3])
  for i, r in ipairs(rules) do
    r.key, r.kind, r.bound, r.amount, r.day, r.seed = KEYS[i + 3], r[1], r[2], r[3], r[4], r[5]
  end
  return rules
end

local function read_head()
  local a = cmsgpack.unpack(ARGV[2])
  return {
    id = a[1], mode = a[2], age = a[3], ended = a[4], lease = a[5], keep = a[6],
    requests = a[7], tokens = a[8], cost = a[9],
  }
end

local answer = cmsgpack.pack

-- Reads each calendar window, begun with its seed where need be; returns the reply that asks for
-- the seeds that are missing.
local function open_calendars(rules, now)
  local reply = {UNSEEDED, now}
  for i, r in ipairs(rules) do
    if r.kind ~= 's' and r.kind ~= 'l' then
      r.first, r.next = span(r.kind, now)
      r.used = tonumber(redis.call('HGET', r.key, r.first .. 'u') or -1)
      if r.used < 0 and r.day == r.first then
        seed(r.key, r.kind, r.seed, now)
        r.used = r.seed
      elseif r.used < 0 then
        reply[#reply + 1] = i - 1
        reply[#reply + 1] = r.first
      end
    end
  end
  return #reply > 2 and answer(reply) or nil
end

-- Someone with a seat must be done first: the mean time of a hold, over those who have one.
local function seat_wait(taken)
  local mean = tonumber(redis.call('HGET', KEYS[1], 'mean') or 0)
  if mean == 0 then return COLD_WAIT end
  return math.max(LEAST_WAIT, math.min(math.floor(mean / taken), MOST_WAIT))
end

-- Finds where a rule stands: used; returns how long until `amount` more fits.
local function stand(r, amount, now, at)
  if r.kind == 's' then
    r.window = open_window(r.key, now, at)
    r.used = r.window.total
  elseif r.kind == 'l' then
    r.used = redis.call('ZCOUNT', r.key, '(' .. string.format('%.0f', now), '+inf')
  end
  if amount == 0 or r.used + amount <= r.bound then return 0 end
  if amount > r.bound then return NEVER end
  if r.kind == 's' then return left_in(r.window, r.used + amount - r.bound, now) end
  if r.kind == 'l' then return seat_wait(r.used) end
  return r.next * DAY - now
end

local function take(rules, head, now, at)
  local member = cmsgpack.pack({head.id, head.requests, head.tokens, head.cost})
  local record = {member, at}
  for i, r in ipairs(rules) do
    if r.kind == 's' then
      add_to_window(r.window, r.amount, now)
    elseif r.kind ~= 'l' then
      add_to_calendar(r.key, r.kind, at, r.amount, 0)
    elseif r.amount > 0 then
      redis.call('ZREMRANGEBYSCORE', r.key, '-inf', now)
      redis.call('ZADD', r.key, now + head.lease, head.id)
      redis.call('PEXPIRE', r.key, math.ceil(head.lease / 1000))
    end
    record[i + 2] = r.amount
  end
  local life_ms = math.ceil((head.lease + 2 * head.keep) / 1000)
  redis.call('SET', KEYS[3], cmsgpack.pack(record), 'PX', life_ms)
  redis.call('ZADD', KEYS[2], now + head.lease + head.keep, member)
  redis.call('PEXPIRE', KEYS[2], RETAIN_MS)
  count('r', head.requests, head.tokens, head.cost)
end

-- Mode `ask`, or `adopt`: takes in what was let in elsewhere, `age` ago, whatever the limits say.
local function reserve()
  local now, rules, head = read_clock(), read_rules(), read_head()
  sweep(now)
  local known = find(KEYS[3])
  if known == CLOSED then return answer({CLOSED, now}) end
  local missing = open_calendars(rules, now)
  if missing then return missing end
  local at, waits, fits = now - head.age, {}, true
  for i, r in ipairs(rules) do
    waits[i] = stand(r, known and 0 or r.amount, now, at)
    fits = fits and waits[i] == 0
  end
  local is_in = known or fits or head.mode == 'adopt'
  if is_in and not known then take(rules, head, now, at) end
  local reply = {is_in and GRANTED or DENIED, now}
  for i, r in ipairs(rules) do
    local reset = r.window and empty_in(r.window, now) or r.next and r.next * DAY - now or 0
    reply[i * 3] = r.used + (is_in and not known and r.amount or 0)
    reply[i * 3 + 1] = is_in and 0 or waits[i]
    reply[i * 3 + 2] = reset
  end
  return answer(reply)
end

-- Corrects every rule to what was spent; returns those whose budget reached its alert.
local function change(rules, known, head, now, at, ended)
  local alerts = {}
  for i, r in ipairs(rules) do
    local amount = r.amount - (known and known[i + 2] or 0)
    if r.kind == 'l' then
      redis.call('ZREM', r.key, head.id)
    elseif r.kind ~= 's' then
      local spent, first = add_to_calendar(r.key, r.kind, at, amount, r.amount, ended)
      if spent and r.bound > 0 and spent >= r.bound
        and redis.call('HSETNX', r.key, first .. 'a', 1) == 1 then
        alerts[#alerts + 1] = i - 1
      end
    elseif amount ~= 0 then
      add_to_window(open_window(r.key, now, at), amount, now)
    end
  end
  return alerts
end

local function over(a, b) return math.max(a - b, 0) end

-- Mode `settle` or `release`; `charge` takes what an unknown hold has spent (its store was lost).
local function settle()
  local now, rules, head = read_clock(), read_rules(), read_head()
  sweep(now)
  local known = find(KEYS[3])
  if known == CLOSED then return answer({CLOSED, now}) end
  if not known and head.mode == 'charge' then
    local missing = open_calendars(rules, now)
    if missing then return missing end
  end
  redis.call('SET', KEYS[3], 'x', 'PX', CLOSED_MS)
  if not known and head.mode ~= 'charge' then return answer({UNKNOWN, now}) end
  local at, ended, requests, tokens, cost = now - head.age, now - head.ended, 0, 0, 0
  if known then
    local _
    _, requests, tokens, cost = unpack(cmsgpack.unpack(known[1]))
    redis.call('ZREM', KEYS[2], known[1])
    at, ended = known[2], nil
  end
  local alerts = change(rules, known, head, now, at, ended)
  count('r', over(head.requests, requests), over(head.tokens, tokens), over(head.cost, cost))
  count('s', head.requests, head.tokens, head.cost)
  count('f', over(requests, head.requests), over(tokens, head.tokens), over(cost, head.cost))
  if known and head.mode ~= 'release' then
    local mean = tonumber(redis.call('HGET', KEYS[1], 'mean') or now - at)
    redis.call('HSET', KEYS[1], 'mean', mean + math.floor((now - at - mean) / 8))
  end
  return answer({known and GRANTED or UNKNOWN, now, unpack(alerts)})
end

-- ARGV[2] {lease, keep}, ARGV[3] {id, number of seats} of each hold; KEYS: the hold, its seats.
-- A lease that had lapsed is taken up again even above the limit: the request is there.
local function renew()
  local now, lease, keep = read_clock(), unpack(cmsgpack.unpack(ARGV[2]))
  local reply, k = {}, 3
  sweep(now)
  for i, hold in ipairs(cmsgpack.unpack(ARGV[3])) do
    local id, seats = unpack(hold)
    local known = find(KEYS[k])
    local is_open = known and known ~= CLOSED
    if is_open then
      redis.call('PEXPIRE', KEYS[k], math.ceil((lease + 2 * keep) / 1000))
      redis.call('ZADD', KEYS[2], now + lease + keep, known[1])
      for s = k + 1, k + seats do
        redis.call('ZADD', KEYS[s], now + lease, id)
        redis.call('PEXPIRE', KEYS[s], math.ceil(lease / 1000))
      end
    end
    reply[i] = is_open and GRANTED or known or UNKNOWN
    k = k + seats + 1
  end
  redis.call('PEXPIRE', KEYS[2], RETAIN_MS)
  return answer(reply)
end

local function totals()
  sweep(read_clock())
  local sums = redis.call('HMGET', KEYS[1],
    'rr', 'rt', 'rc', 'sr', 'st', 'sc', 'fr', 'ft', 'fc', 'lr', 'lt', 'lc')
  return {sums, redis.call('ZRANGE', KEYS[2], 0, -1)}
end

local operations = {reserve = reserve, settle = settle, renew = renew, totals = totals}
return operations[ARGV[1]]()
